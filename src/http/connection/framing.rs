//! Where one request of a connection ends and the next begins (RFC 9112, section 6), to see what
//! hyper takes away: a head that gives its body's length in two ways, which two programs in a row
//! may read differently and so take a part of a body for a request.

use std::str;

use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

/// As in hyper.
const HEADERS_MAX: usize = 100;

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Head,
    /// So many bytes of a body.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk and the line's end behind it.
    Chunk(u64),
    Trailers,
    /// What hyper will refuse, and nobody can tell where it ends.
    Unknown,
}

/// A request whose head says `Transfer-Encoding` and `Content-Length`.
#[derive(Debug, PartialEq)]
pub(super) struct FramedTwice {
    /// Where its head begins in the bytes that were given last; 0 if it began before them.
    pub at: usize,
}

/// Follows the requests of a connection.
#[derive(Debug)]
pub(super) struct Framing {
    next: Next,
    /// What has come of a head, of the line of a chunk's size, or of a trailer's line.
    held: Vec<u8>,
    held_bytes_max: usize,
}

impl Framing {
    /// A larger head than `head_bytes_max` is not followed.
    pub fn new(head_bytes_max: usize) -> Self {
        Self { next: Next::Head, held: Vec::new(), held_bytes_max: head_bytes_max }
    }

    /// Whether a request's body is not there yet.
    pub fn is_in_body(&self) -> bool {
        matches!(self.next, Next::Body(_) | Next::ChunkSize | Next::Chunk(_) | Next::Trailers)
    }

    /// Whether a part of a head is there.
    pub fn is_in_head(&self) -> bool {
        self.next == Next::Head && !self.held.is_empty()
    }

    /// Whether all that has come are whole requests.
    pub fn is_between(&self) -> bool {
        self.next == Next::Head && self.held.is_empty()
    }

    /// Follows what came next.
    ///
    /// # Errors
    /// [`FramedTwice`]: what is before it may still be read.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), FramedTwice> {
        let mut rest = bytes;
        let mut head_at = 0;
        while let Some(&byte) = rest.first() {
            match self.next {
                Next::Unknown => return Ok(()),
                Next::Body(left) | Next::Chunk(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    rest = &rest[taken..];
                    self.passed(left - taken as u64);
                }
                // Empty lines before a request are none of it.
                Next::Head if self.held.is_empty() && matches!(byte, b'\r' | b'\n') => {
                    rest = &rest[1..];
                }
                Next::Head | Next::ChunkSize | Next::Trailers => {
                    if self.held.is_empty() {
                        head_at = bytes.len() - rest.len();
                    }
                    let line = rest.iter().position(|&byte| byte == b'\n');
                    let taken = line.map_or(rest.len(), |at| at + 1);
                    self.held.extend_from_slice(&rest[..taken]);
                    rest = &rest[taken..];
                    if self.held.len() > self.held_bytes_max {
                        self.next = Next::Unknown;
                    } else if line.is_some() && !self.line() {
                        return Err(FramedTwice { at: head_at });
                    }
                }
            }
        }
        Ok(())
    }

    /// So many bytes are left of a body or chunk.
    fn passed(&mut self, left: u64) {
        self.next = match (self.next, left) {
            (Next::Body(_), 0) => Next::Head,
            (Next::Body(_), _) => Next::Body(left),
            (_, 0) => Next::ChunkSize,
            _ => Next::Chunk(left),
        };
    }

    /// A line is whole. False for a head that frames its body twice.
    fn line(&mut self) -> bool {
        let is_empty = self.held.ends_with(b"\n\n") || self.held.ends_with(b"\n\r\n");
        match self.next {
            Next::Head if is_empty => {
                let Some(next) = after_head(&self.held) else { return false };
                self.next = next;
                self.held.clear();
            }
            Next::ChunkSize => {
                self.next = after_size(&self.held);
                self.held.clear();
            }
            Next::Trailers => {
                if matches!(&self.held[..], b"\r\n" | b"\n") {
                    self.next = Next::Head;
                }
                self.held.clear();
            }
            _ => {}
        }
        true
    }
}

/// What follows a whole head; `None` if it says so twice.
fn after_head(head: &[u8]) -> Option<Next> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).is_ok_and(|status| status.is_complete()) {
        return Some(Next::Unknown);
    }
    let all = |name: &str| {
        let named = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect::<Vec<_>>()
    };
    let (lengths, codings) = (all(CONTENT_LENGTH.as_str()), all(TRANSFER_ENCODING.as_str()));
    match (&lengths[..], &codings[..]) {
        ([], []) => Some(Next::Head),
        ([], _) => Some(Next::ChunkSize),
        ([length, ..], []) => {
            let bytes = str::from_utf8(length).ok().and_then(|text| text.trim().parse().ok());
            Some(bytes.map_or(Next::Unknown, |bytes| match bytes {
                0 => Next::Head,
                bytes => Next::Body(bytes),
            }))
        }
        _ => None,
    }
}

/// What follows the line of a chunk's size, which may have extensions behind it.
fn after_size(line: &[u8]) -> Next {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let size = str::from_utf8(&line[..digits]).unwrap_or_default();
    match u64::from_str_radix(size, 16) {
        Ok(0) => Next::Trailers,
        // The line's end behind it is of two bytes.
        Ok(bytes) => bytes.checked_add(2).map_or(Next::Unknown, Next::Chunk),
        Err(_) => Next::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab\r\n\r";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
        a;x=y\r\nGET / HTTP\r\n2\r\n\r\n\r\n0\r\nwas: it\r\n\r\n";

    /// Where the bytes frame a body twice when they come in such parts.
    fn twice(bytes: &str, part: usize) -> Option<usize> {
        let mut framing = Framing::new(1024);
        for (index, part_bytes) in bytes.as_bytes().chunks(part).enumerate() {
            if let Err(FramedTwice { at }) = framing.take(part_bytes) {
                return Some(index * part + at);
            }
        }
        assert!(framing.is_between(), "{framing:?}: {bytes}");
        None
    }

    #[test]
    fn requests_are_followed_however_they_are_cut() {
        let all = [GET, POST, CHUNKED, "\r\n\n", GET, CHUNKED, POST, GET].concat();
        for part in 1..=all.len() {
            assert_eq!(twice(&all, part), None, "{part}");
        }
    }

    #[test]
    fn a_body_framed_twice_is_found_behind_others() {
        for both in [
            "POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING: x\r\nhost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\ntransfer-encoding:chunked\ncontent-length:\t6\n\n",
        ] {
            for before in ["", GET, POST, CHUNKED] {
                let all = [before, both, GET].concat();
                for part in 1..=all.len() {
                    let at = twice(&all, part);
                    assert!(at.is_some_and(|at| at >= before.len()), "{part} {all}: {at:?}");
                }
                assert_eq!(twice(&all, all.len()), Some(before.len()));
            }
        }
    }

    #[test]
    fn what_is_no_request_ends_it() {
        for bad in ["\0\0\r\n\r\n", "GET /\r\nhost\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: x"]
        {
            let mut framing = Framing::new(64);
            let long = "x".repeat(100);
            let all = format!("{bad}\r\n\r\n{long}");
            assert_eq!(framing.take(all.as_bytes()), Ok(()));
            assert_eq!(framing.next, Next::Unknown, "{bad}");
        }
    }
}
