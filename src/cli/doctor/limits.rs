//! How many files and threads a server may have.

use rustix::process::{Resource, getrlimit};

use super::check::Check;
use crate::cli::limits;
use crate::http::HttpSettings;

/// Fewer threads are too few for a machine of many cores.
const THREADS_LOW: u64 = 512;

fn shown(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), |limit| limit.to_string())
}

/// Files that may be open: a server raises the soft limit to the hard one.
pub fn open_files() -> Check {
    let [soft, hard] = limits::open_files().map(shown);
    let found = format!("{soft}, and {hard} once a server has raised it");
    match limits::open_files_warning(HttpSettings::standard().connections_max) {
        None => Check::ok("files", found),
        Some(warning) => Check::warning("files", found, warning),
    }
}

/// Threads that may run.
pub fn threads() -> Check {
    let user = getrlimit(Resource::Nproc).current;
    let group = limits::pids_max();
    let found = format!("{} of this user, {} of the container", shown(user), shown(group));
    match user.into_iter().chain(group).min() {
        Some(most) if most < THREADS_LOW => {
            let advice = "a server needs a few for each core and one for each request that is \
                          read; raise ulimit -u, or pids.max of the container";
            Check::warning("threads", found, advice)
        }
        _ => Check::ok("threads", found),
    }
}
