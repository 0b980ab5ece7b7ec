//! When to stop.

use tokio::signal::unix::{SignalKind, signal as on};

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
pub async fn signal() {
    let (Ok(mut term), Ok(mut int)) = (on(SignalKind::terminate()), on(SignalKind::interrupt()))
    else {
        // Without handlers the default action of both signals is to end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        std::process::exit(130);
    });
}
