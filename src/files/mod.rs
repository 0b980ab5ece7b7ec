//! Directories that others may change while they are read.
//!
//! A directory is opened once, and all that is beneath it by its descriptor: whatever is put in the
//! place of a name meanwhile, what is read lies in that directory, or where links may lead. What
//! belongs together is read by [`steadily`], which sees to it that nothing changed on the way.

mod error;
mod folder;
mod stamp;
mod walk;

pub use error::NotRead;
pub use folder::{Folder, Root, steadily};
pub use stamp::Stamp;
