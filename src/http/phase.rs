//! How far a shutdown has come.

use tokio::sync::watch;

/// The server's life after its start, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Phase {
    Serving,
    /// Requests are taken, but load balancers are told to look elsewhere.
    Leaving,
    /// No new requests.
    Draining,
    /// Those in flight end with an error.
    Cancelling,
}

/// Waits for a shutdown to come so far. Forever if the server itself is gone, which takes its
/// connections with it.
pub(super) async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    let is_gone = phases.wait_for(|now| *now >= phase).await.is_err();
    if is_gone {
        std::future::pending::<()>().await;
    }
}
