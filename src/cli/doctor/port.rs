//! Whether the server could listen, and who does if it could not.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;

use super::check::Check;

/// Tries the port and gives it back at once.
pub fn check(host: &str, port: u16) -> Check {
    let host = host.trim_matches(['[', ']']);
    let place = format!("{port} on {host}");
    match TcpListener::bind((host, port)) {
        Ok(_) if port == 0 => Check::ok("port", format!("any, on {host}")),
        Ok(_) => Check::ok("port", format!("{place} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let who = listener(port).unwrap_or_else(|| "a program of another user".to_owned());
            let found = format!("{place} is in use by {who}");
            Check::problem("port", found, "stop that, or choose another --port")
        }
        Err(error) => {
            let advice = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "ports below 1024 need rights; choose another --port"
                }
                _ => "choose an address of this machine as --host",
            };
            Check::problem("port", format!("cannot listen on {place}: {error}"), advice)
        }
    }
}

/// Name and number of the process that listens on a port, where this user may see it.
fn listener(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let inodes: Vec<String> =
        tables.into_iter().flatten().flat_map(|table| listening(&table, port)).collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes.filter(|entry| is_number(&entry.file_name())) {
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let mut targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        if targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let number = process.file_name().to_string_lossy().into_owned();
            return Some(format!("{} (process {number})", name.trim()));
        }
    }
    None
}

/// Inodes of the sockets that listen on a port, of `/proc/net/tcp`.
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let end = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let own = rows.filter(|row| row.len() > 9 && row[1].ends_with(&end) && row[3] == LISTEN);
    own.map(|row| row[9].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_by_the_sockets_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 \
                     00:00000000 00000000  1000        0 4711 1 0\n   1: 0100007F:1F40 \
                     0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 4712\n";
        assert_eq!(listening(table, 8000), ["4711"]);
        assert!(listening(table, 8001).is_empty());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let who = listener(taken.local_addr().unwrap().port()).unwrap();
        assert!(who.contains(&format!("process {}", std::process::id())), "{who}");
    }
}
