//! When to stop.

use tokio::signal::unix::{SignalKind, signal as on};

/// SIGHUP ends nothing from now on, whether or not there is something to read again: a terminal
/// that is closed sends it, and so do service managers to reload.
pub fn outlive_hangup() {
    // Once it is asked for, the system's own action is never taken again.
    if let Err(error) = on(SignalKind::hangup()) {
        tracing::warn!(%error, "SIGHUP will end the server");
    }
}

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
