//! A client of a server of OpenAI's API, as every command speaks to one: where the server is,
//! whether to believe its certificate, requests and streams. It may be in this process.

mod address;
mod answer;
mod connect;
mod error;
mod events;
mod requests;
mod trust;

pub use address::Address;
pub use answer::Answer;
pub use error::ClientError;
pub use events::Events;
pub use requests::Client;
