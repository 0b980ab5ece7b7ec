//! Output that stops growing.

use std::io;

/// A buffer that fails to be written to once it would be above its limit.
pub(super) struct Capped {
    pub bytes: Vec<u8>,
    pub bytes_max: usize,
    pub is_full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bytes_max - self.bytes.len() {
            self.is_full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
