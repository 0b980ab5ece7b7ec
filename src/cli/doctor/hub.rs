//! What fetching from the Hub takes: a cache that can be written, with room, and a token.

use std::io;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::cli::hub::HubSettings;
use crate::cli::memory::human;

/// Less is no room for the weights of most models.
const FREE_BYTES_LOW: u64 = 5 << 30;

/// The Hub's cache.
pub fn cache() -> Check {
    let settings = HubSettings::from_env();
    let shown = settings.cache_dir.display().to_string();
    let offline = if settings.offline { "; HF_HUB_OFFLINE is set: nothing is fetched" } else { "" };
    let place = match writable(&settings.cache_dir) {
        Ok(place) => place,
        Err(error) => {
            return Check::warning(
                "hub cache",
                format!("{shown} cannot be written: {error}{offline}"),
                "set HF_HOME to a folder that can, or name directories instead of Hub ids",
            );
        }
    };
    let made = if place == settings.cache_dir { "" } else { " (it will be made)" };
    let free = rustix::fs::statvfs(&place).map(|stat| stat.f_bavail * stat.f_frsize);
    let Ok(free) = free else {
        return Check::ok("hub cache", format!("{shown}{made}{offline}"));
    };
    let found = format!("{shown}{made}, {} free{offline}", human(free));
    match free < FREE_BYTES_LOW && !settings.offline {
        true => {
            let advice = "free space there, or set HF_HOME to another place; a model of 7 billion \
                          parameters takes 15 GB";
            Check::warning("hub cache", found, advice)
        }
        false => Check::ok("hub cache", found),
    }
}

/// Whether there is a token. It is shown nowhere.
pub fn token() -> Check {
    match HubSettings::from_env().token {
        Some(_) => Check::ok("hub token", "there is one"),
        None => Check::ok("hub token", "none; only private and gated repositories need HF_TOKEN"),
    }
}

/// The folder, or the one above it in which it can be made. Leaves nothing there.
///
/// # Errors
/// It cannot be written.
pub fn writable(dir: &Path) -> io::Result<PathBuf> {
    let above =
        dir.ancestors().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let found = above.into_iter().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(found)?;
    Ok(found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::writable;

    #[test]
    fn a_folder_that_is_not_there_is_writable_where_it_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let found = writable(&dir.path().join("a/b/c")).unwrap();
        assert_eq!(found, dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(writable(&file.join("x")).is_err(), "a file is no folder");
    }
}
