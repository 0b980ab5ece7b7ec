//! Compressed request bodies.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;

use crate::http::error::{ApiError, ProtocolError};

/// Of a zstd body, as RFC 9659 has it: 8 MiB. A frame that asks for more memory is refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Decompressed at a time.
const PART_BYTES: usize = 64 * 1024;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::http) enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// What `Content-Encoding` says; `None` for a body that is not compressed.
    ///
    /// # Errors
    /// [`ProtocolError::Coding`] for any that is not here, and for one on top of another.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, ProtocolError> {
        let mut found = Vec::new();
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().unwrap_or("?");
            let names = value.split(',').map(|name| name.trim().to_ascii_lowercase());
            found.extend(names.filter(|name| !name.is_empty() && name != "identity"));
        }
        match found.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Ok(None),
            ["gzip" | "x-gzip"] => Ok(Some(Self::Gzip)),
            ["zstd"] => Ok(Some(Self::Zstd)),
            _ => Err(ProtocolError::Coding { found: found.join(", ") }),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn reader<'a>(self, bytes: &'a [u8]) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(bytes)),
            Self::Zstd => {
                let mut reader = zstd::stream::read::Decoder::with_buffer(bytes)?;
                reader.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(reader)
            }
        })
    }

    /// Hands over what the bytes hold, part by part, until `take` refuses.
    ///
    /// # Errors
    /// [`ProtocolError::CodingBroken`], and those of `take`.
    pub fn decode(
        self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let broken = |error: io::Error| {
            let problem = error.to_string();
            ProtocolError::CodingBroken { coding: self.name(), problem }
        };
        let mut reader = self.reader(bytes).map_err(broken)?;
        let mut part = vec![0; PART_BYTES];
        loop {
            match reader.read(&mut part).map_err(broken)? {
                0 => return Ok(()),
                bytes => take(&part[..bytes])?,
            }
        }
    }
}
