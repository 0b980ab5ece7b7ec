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

/// What two programs in a row may read differently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// A head says `Transfer-Encoding` and `Content-Length`.
    FramedTwice,
    /// A head says another `Transfer-Encoding` than `chunked`, once.
    Coding,
    /// A head is too long.
    TooLong,
    /// A line between chunks or behind the last ends with LF alone, which ends a head too.
    BareLineFeed,
}

/// What is not read on.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub fault: Fault,
    /// Where the request's head, or the line, begins in the bytes that were given last; 0 if it
    /// began before them.
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
    /// A larger head than `head_bytes_max` is [`Fault::TooLong`].
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
    /// [`Refusal`]: what is before it may still be read.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
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
                    let checked = match self.held.len() > self.held_bytes_max {
                        true => Err(Fault::TooLong),
                        false if line.is_some() => self.line(),
                        false => Ok(()),
                    };
                    checked.map_err(|fault| Refusal { fault, at: head_at })?;
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

    /// A line is whole.
    fn line(&mut self) -> Result<(), Fault> {
        let is_empty = self.held.ends_with(b"\n\n") || self.held.ends_with(b"\n\r\n");
        match self.next {
            Next::Head if is_empty => {
                self.next = after_head(&self.held)?;
                self.held.clear();
            }
            Next::ChunkSize | Next::Trailers if !self.held.ends_with(b"\r\n") => {
                return Err(Fault::BareLineFeed);
            }
            Next::ChunkSize => {
                self.next = after_size(&self.held);
                self.held.clear();
            }
            Next::Trailers => {
                if self.held == b"\r\n" {
                    self.next = Next::Head;
                }
                self.held.clear();
            }
            _ => {}
        }
        Ok(())
    }
}

/// What follows a whole head.
fn after_head(head: &[u8]) -> Result<Next, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).is_ok_and(|status| status.is_complete()) {
        return Ok(Next::Unknown);
    }
    let all = |name: &str| {
        let named = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect::<Vec<_>>()
    };
    let (lengths, codings) = (all(CONTENT_LENGTH.as_str()), all(TRANSFER_ENCODING.as_str()));
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Next::Head),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Next::ChunkSize),
        ([], _) => Err(Fault::Coding),
        ([length, ..], []) => {
            let bytes = str::from_utf8(length).ok().and_then(|text| text.trim().parse().ok());
            Ok(bytes.map_or(Next::Unknown, |bytes| match bytes {
                0 => Next::Head,
                bytes => Next::Body(bytes),
            }))
        }
        _ => Err(Fault::FramedTwice),
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

    /// What is refused, and where, when the bytes come in such parts.
    fn refused(bytes: &str, part: usize) -> Option<(Fault, usize)> {
        let mut framing = Framing::new(1024);
        for (index, part_bytes) in bytes.as_bytes().chunks(part).enumerate() {
            if let Err(Refusal { fault, at }) = framing.take(part_bytes) {
                return Some((fault, index * part + at));
            }
        }
        assert!(framing.is_between(), "{framing:?}: {bytes}");
        None
    }

    #[test]
    fn requests_are_followed_however_they_are_cut() {
        let all = [GET, POST, CHUNKED, "\r\n\n", GET, CHUNKED, POST, GET].concat();
        for part in 1..=all.len() {
            assert_eq!(refused(&all, part), None, "{part}");
        }
    }

    #[test]
    fn what_two_programs_read_differently_is_found_behind_others() {
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1024));
        for (bad, fault) in [
            (
                "POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
                Fault::FramedTwice,
            ),
            (
                "POST / HTTP/1.1\r\nTRANSFER-ENCODING: x\r\nhost: a\r\nContent-Length: 0\r\n\r\n",
                Fault::FramedTwice,
            ),
            (
                "POST / HTTP/1.1\ntransfer-encoding:chunked\ncontent-length:\t6\n\n",
                Fault::FramedTwice,
            ),
            ("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", Fault::Coding),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked, chunked\r\n\r\n", Fault::Coding),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\
                 transfer-encoding: chunked\r\n\r\n",
                Fault::Coding,
            ),
            (&long, Fault::TooLong),
        ] {
            for before in ["", GET, POST, CHUNKED] {
                let all = [before, bad, GET].concat();
                for part in 1..=all.len() {
                    let found = refused(&all, part);
                    let is_it = |(other, at)| other == fault && at >= before.len();
                    assert!(found.is_some_and(is_it), "{part} {all}: {found:?}");
                }
                assert_eq!(refused(&all, all.len()), Some((fault, before.len())));
            }
        }
    }

    #[test]
    fn a_line_feed_alone_ends_no_line_of_chunks() {
        let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        for body in [
            "2\nab\r\n0\r\n\r\n",
            "2\r\nab\r\n0\n\r\n",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\r\n\n",
        ] {
            let all = [head, body, GET].concat();
            for part in 1..=all.len() {
                let found = refused(&all, part);
                assert!(found.is_some_and(|(f, _)| f == Fault::BareLineFeed), "{part} {body:?}");
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
