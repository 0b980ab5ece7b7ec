//! When to stop.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal as on};

/// Signals that end nothing from now on. SIGHUP, whether or not there is something to read again: a
/// terminal that is closed sends it, and so do service managers to reload. SIGXFSZ, which a log
/// that has reached the limit of its size (ulimit -f) brings: its lines are lost then.
pub fn outlive() {
    let too_large = SignalKind::from_raw(Signal::XFSZ.as_raw());
    for (name, kind) in [("SIGHUP", SignalKind::hangup()), ("SIGXFSZ", too_large)] {
        // Once it is asked for, the system's own action is never taken again.
        if let Err(error) = on(kind) {
            tracing::warn!(%error, "{name} will end the server");
        }
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
