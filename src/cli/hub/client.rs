//! The Hub over HTTP: who is asked, who may see the token, and what an answer has to look like.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request, Response, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, ProxyProtocol};

use super::cache::{Commit, Etag, Hash, is_plain};
use super::one_line;

/// A connection that takes longer is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A server that says nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Further tries of a request that failed in a way that may pass.
const RETRIES_MAX: u32 = 3;
/// Doubles with each: 1.75 seconds in all.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// More than the Hub and the storage behind it need; a circle ends here.
const REDIRECTS_MAX: usize = 10;
/// Pages of a list of files. The Hub puts a thousand on each.
const PAGES_MAX: usize = 100;
/// Entries on all of them.
const ENTRIES_MAX: usize = 100_000;
/// Bytes of one answer in JSON, so that no server can fill the memory.
const JSON_BYTES_MAX: u64 = 16 << 20;
/// One that takes longer to come is given up.
const JSON_TIME_MAX: Duration = Duration::from_secs(60);
/// Of one file: a petabyte, so that sums of some are numbers still.
const FILE_BYTES_MAX: u64 = 1 << 50;
/// What may stand in a part of a URL's path as it is (RFC 3986, "unreserved").
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The name of a large file's content, told before its server is named.
const LINKED_ETAG: &str = "x-linked-etag";

/// Why there is no answer that can be used.
#[derive(Debug)]
pub enum Problem {
    /// The endpoint is no URL.
    Endpoint,
    /// Nobody answers; the cause.
    Unreachable(String),
    /// The Hub answers with this status, and its word for the error where it has one.
    Status(u16, String),
    /// An answer that makes no sense, or another server's refusal; what is wrong with it.
    Answer(String),
}

/// Asks one Hub about one repository.
pub struct Client {
    agent: Agent,
    proxies: Matcher,
    endpoint: Uri,
    /// Of the repository's pages in the Hub's programming interface.
    api: String,
    /// Of its files.
    files: String,
    token: Option<String>,
}

impl Client {
    /// For the repository `id` at `endpoint`.
    pub fn new(endpoint: &str, id: &str, token: Option<&str>) -> Result<Self, Problem> {
        let endpoint = endpoint.trim_end_matches('/');
        // The system's certificates, as Python and curl take them: a company's own are among them.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // They are followed here, where it is known who may see the token.
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .user_agent(concat!("tessera/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: config.into(),
            proxies: Matcher::from_env(),
            api: format!("{endpoint}/api/models/{id}"),
            files: format!("{endpoint}/{id}/resolve"),
            endpoint: parse(endpoint).ok_or(Problem::Endpoint)?,
            token: token.map(str::to_owned),
        })
    }

    /// What a revision stands for.
    pub fn commit(&self, revision: &str) -> Result<Commit, Problem> {
        let (_, info) = self.json(&format!("{}/revision/{}", self.api, encode(revision)))?;
        let commit = info["sha"].as_str().and_then(Commit::parse);
        commit.ok_or_else(|| Problem::Answer(format!("it gives no commit for '{revision}'")))
    }

    /// The files at the top of the repository. Names that lead elsewhere are left out.
    pub fn files(&self, commit: &Commit) -> Result<BTreeMap<String, Listed>, Problem> {
        let lost = || Problem::Answer("its list of files goes on nowhere".into());
        let (mut files, mut count) = (BTreeMap::new(), 0);
        let mut page = Some(format!("{}/tree/{commit}", self.api));
        for _ in 0..PAGES_MAX {
            let Some(url) = page else { return Ok(files) };
            let (headers, entries) = self.json(&url)?;
            let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
            count += entries.len();
            if count > ENTRIES_MAX {
                let text = format!("its list of files has more than {ENTRIES_MAX} entries");
                return Err(Problem::Answer(text));
            }
            files.extend(entries.iter().filter_map(listed));
            if let Some((name, file)) = files.iter().find(|(_, file)| file.bytes > FILE_BYTES_MAX) {
                let text = format!("it says that {name} has {} bytes", file.bytes);
                return Err(Problem::Answer(text));
            }
            page = match next_page(&headers) {
                None => None,
                Some(next) => Some(join(&self.endpoint, next).ok_or_else(lost)?.to_string()),
            };
        }
        Err(Problem::Answer(format!("its list of files has more than {PAGES_MAX} pages")))
    }

    /// The name of a file's content.
    pub fn etag(&self, commit: &Commit, name: &str) -> Result<Etag, Problem> {
        let response = self.ask(&Method::HEAD, &self.file(commit, name), 0)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let other = |answered: &str| Commit::parse(answered).as_ref() != Some(commit);
        if header("x-repo-commit").is_some_and(other) {
            return Err(Problem::Answer(format!("it answers for another commit than {commit}")));
        }
        let etag = header(LINKED_ETAG).or_else(|| header("etag")).and_then(Etag::parse);
        etag.ok_or_else(|| Problem::Answer(format!("it gives no usable ETag for {name}")))
    }

    /// A file's content from byte `from` on, or from its start: the status tells. What calls itself
    /// another content than `etag`, or of another commit, is none.
    pub fn content(
        &self,
        commit: &Commit,
        name: &str,
        etag: &Etag,
        from: u64,
    ) -> Result<Response<Body>, Problem> {
        let response = self.ask(&Method::GET, &self.file(commit, name), from)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        // A storage that was redirected to has other names for the same, and no commits.
        let Some(answered) = header("x-repo-commit") else { return Ok(response) };
        if Commit::parse(answered).as_ref() != Some(commit) {
            return Err(Problem::Answer("it answers for another commit".into()));
        }
        let other = |found: &str| Etag::parse(found).as_ref() != Some(etag);
        match header(LINKED_ETAG).or_else(|| header("etag")).is_some_and(other) {
            true => Err(Problem::Answer("the file has changed meanwhile".into())),
            false => Ok(response),
        }
    }

    fn file(&self, commit: &Commit, name: &str) -> String {
        format!("{}/{commit}/{}", self.files, encode(name))
    }

    fn json(&self, url: &str) -> Result<(HeaderMap, Value), Problem> {
        let (parts, body) = self.ask(&Method::GET, url, 0)?.into_parts();
        let bytes = within(body.into_reader(), JSON_BYTES_MAX, Instant::now() + JSON_TIME_MAX)?;
        let value = serde_json::from_slice(&bytes);
        let value = value.map_err(|_| Problem::Answer("it answers with no JSON".into()))?;
        Ok((parts.headers, value))
    }

    /// Asks until there is an answer that another try would not change.
    fn ask(&self, method: &Method, url: &str, from: u64) -> Result<Response<Body>, Problem> {
        let mut retries = 0;
        loop {
            let answer = self.follow(method, url, from);
            let may_pass = match &answer {
                Err(Problem::Unreachable(_)) => true,
                Err(Problem::Status(status, _)) => {
                    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                }
                _ => false,
            };
            if !may_pass || retries == RETRIES_MAX {
                return answer;
            }
            std::thread::sleep(RETRY_DELAY * 2u32.pow(retries));
            retries += 1;
        }
    }

    /// Goes where redirects lead. To a HEAD, one that leads away and says which content is there is
    /// answer enough: the storage behind it need not know the Hub's headers, nor take a HEAD.
    fn follow(&self, method: &Method, url: &str, from: u64) -> Result<Response<Body>, Problem> {
        let lost = |uri: &Uri| Problem::Answer(format!("{} leads nowhere", host(uri)));
        let mut uri = parse(url).ok_or(Problem::Endpoint)?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.once(method, &uri, from)?;
            let (status, headers) = (response.status(), response.headers());
            if status.is_success() {
                return Ok(response);
            }
            if status.is_redirection() {
                let location = headers.get(header::LOCATION).and_then(|v| v.to_str().ok());
                let next = location.and_then(|to| join(&uri, to)).ok_or_else(|| lost(&uri))?;
                let leaves = headers.contains_key(header::ETAG) && !same_origin(&uri, &next);
                if method == Method::HEAD && (leaves || headers.contains_key(LINKED_ETAG)) {
                    return Ok(response);
                }
                if is_weaker(&uri, &next) {
                    let text = format!(
                        "{} redirects from https to http, where anybody may change what comes",
                        host(&uri)
                    );
                    return Err(Problem::Answer(text));
                }
                uri = next;
                continue;
            }
            if !same_origin(&uri, &self.endpoint) {
                let text = format!("{} answers {}", host(&uri), status.as_u16());
                return Err(Problem::Answer(text));
            }
            let code = headers.get("x-error-code").and_then(|v| v.to_str().ok());
            return Err(Problem::Status(status.as_u16(), code.unwrap_or_default().to_owned()));
        }
        Err(lost(&uri))
    }

    fn once(&self, method: &Method, uri: &Uri, from: u64) -> Result<Response<Body>, Problem> {
        // Packed on the way, a file would have another length and another ETag.
        let mut request =
            Request::builder().method(method).uri(uri).header("accept-encoding", "identity");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = &self.token
            && same_origin(uri, &self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bad = |error| Problem::Answer(format!("it cannot be asked: {error}"));
        let request = request.body(()).map_err(bad)?;
        let proxy = self.proxy(uri)?;
        let request = self.agent.configure_request(request).proxy(proxy).build();
        self.agent.run(request).map_err(cause)
    }

    /// The proxy that the environment names for a URL: `HTTPS_PROXY`, `NO_PROXY` and their kin, as
    /// curl reads them.
    fn proxy(&self, uri: &Uri) -> Result<Option<Proxy>, Problem> {
        let Some(found) = self.proxies.intercept(uri) else { return Ok(None) };
        let protocol = match found.uri().scheme_str() {
            Some("https") => ProxyProtocol::Https,
            Some("socks4") => ProxyProtocol::Socks4,
            Some("socks4a") => ProxyProtocol::Socks4A,
            Some("socks5") => ProxyProtocol::Socks5,
            Some("socks5h") => ProxyProtocol::Socks5h,
            _ => ProxyProtocol::Http,
        };
        let mut proxy = Proxy::builder(protocol).host(found.uri().host().unwrap_or_default());
        if let Some(port) = found.uri().port_u16() {
            proxy = proxy.port(port);
        }
        let basic = found.basic_auth().and_then(|value| user_and_password(value.as_bytes()));
        let raw = || found.raw_auth().map(|(user, password)| (user.into(), password.into()));
        if let Some((user, password)) = basic.or_else(raw) {
            proxy = proxy.username(&user).password(&password);
        }
        proxy.build().map(Some).map_err(cause)
    }
}

/// One file of a repository.
#[derive(Debug, PartialEq)]
pub struct Listed {
    /// Its size.
    pub bytes: u64,
    /// The hash of its content, where the list has one.
    pub hash: Option<Hash>,
}

/// A file of a page of the list.
fn listed(entry: &Value) -> Option<(String, Listed)> {
    let name = entry["path"].as_str().filter(|name| is_plain(name))?;
    let bytes = entry["size"].as_u64().filter(|_| entry["type"] == "file")?;
    // Where a large file is kept elsewhere, git's own hash is that of a note on it.
    let hash = match &entry["lfs"] {
        Value::Object(lfs) => lfs.get("oid").and_then(Value::as_str).and_then(Hash::sha256),
        _ => entry["oid"].as_str().and_then(Hash::git),
    };
    Some((name.to_owned(), Listed { bytes, hash }))
}

/// A body that is at its end before it has more than `bytes_max`, and before `deadline`.
fn within(body: impl Read, bytes_max: u64, deadline: Instant) -> Result<Vec<u8>, Problem> {
    let (mut body, mut bytes, mut part) = (body.take(bytes_max + 1), Vec::new(), vec![0; 1 << 16]);
    loop {
        let read = body.read(&mut part);
        let n = read.map_err(|error| Problem::Unreachable(one_line(&error.to_string())))?;
        bytes.extend_from_slice(&part[..n]);
        if bytes.len() as u64 > bytes_max {
            return Err(Problem::Answer(format!("it answers with more than {bytes_max} bytes")));
        }
        if n == 0 {
            return Ok(bytes);
        }
        if Instant::now() > deadline {
            return Err(Problem::Unreachable("an answer comes too slowly".into()));
        }
    }
}

/// What `Basic …` holds, where the matcher has packed a proxy's user and password so.
fn user_and_password(value: &[u8]) -> Option<(String, String)> {
    let packed = STANDARD.decode(value.strip_prefix(b"Basic ")?).ok()?;
    let text = String::from_utf8(packed).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// A URL that can be asked.
fn parse(url: &str) -> Option<Uri> {
    let uri: Uri = url.parse().ok()?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    (known && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

/// Where a link or redirect from `base` leads (RFC 3986, 5.2).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    match location {
        _ if location.starts_with("//") => parse(&format!("{scheme}:{location}")),
        _ if location.starts_with('/') => parse(&format!("{scheme}://{authority}{location}")),
        "" => None,
        _ if has_scheme(location) => parse(location),
        _ if location.starts_with('?') => {
            parse(&format!("{scheme}://{authority}{}{location}", base.path()))
        }
        _ => {
            let (path, query) = location.split_at(location.find('?').unwrap_or(location.len()));
            let mut parts: Vec<&str> = base.path().split('/').skip(1).collect();
            parts.pop();
            for part in path.split('/') {
                match part {
                    "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part),
                }
            }
            parse(&format!("{scheme}://{authority}/{}{query}", parts.join("/")))
        }
    }
}

/// Whether a reference says how it is to be reached, and so stands for itself.
fn has_scheme(reference: &str) -> bool {
    let first = reference.split(['/', '?', '#']).next().unwrap_or_default();
    first.contains(':')
}

/// Whether two URLs lead to the same server, by the same protocol: it may see the same token.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        uri.port_u16().unwrap_or(default)
    };
    a.scheme_str() == b.scheme_str() && host(a).eq_ignore_ascii_case(host(b)) && port(a) == port(b)
}

/// Whether a way from one server to another gives up what keeps others from changing what comes.
fn is_weaker(from: &Uri, to: &Uri) -> bool {
    from.scheme_str() == Some("https") && to.scheme_str() != Some("https")
}

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default()
}

/// The URL of a list's next page (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<&str> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    let (before, _) = links.split_once(">; rel=\"next\"")?;
    before.rsplit_once('<').map(|(_, url)| url)
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, UNRESERVED).to_string()
}

/// What kept an answer from coming. The words of `ureq` around it repeat that I/O failed.
fn cause(error: ureq::Error) -> Problem {
    match error {
        ureq::Error::Io(error) => Problem::Unreachable(one_line(&error.to_string())),
        error => Problem::Unreachable(one_line(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_server_by_one_protocol() {
        let same = |a, b| same_origin(&parse(a).unwrap(), &parse(b).unwrap());
        assert!(same("https://hub.co/x", "https://HUB.co:443/y"));
        for other in [
            "http://hub.co/x",
            "https://hub.co:8443/x",
            "https://hub.co.evil.net/x",
            "https://hub.co@evil.net/x",
            "https://cdn.hub.co/x",
        ] {
            assert!(!same("https://hub.co/x", other), "{other}");
        }
    }

    #[test]
    fn no_way_leads_from_https_to_http() {
        let weaker = |from, to| is_weaker(&parse(from).unwrap(), &parse(to).unwrap());
        assert!(weaker("https://hub.co", "http://cdn.co") && weaker("https://a.co", "http://a.co"));
        assert!(!weaker("http://hub.co", "http://cdn.co"));
        assert!(
            !weaker("http://hub.co", "https://cdn.co") && !weaker("https://a.co", "https://b.co")
        );
    }

    #[test]
    fn redirects_lead_to_web_servers_only() {
        let base = parse("https://hub.co/a/b").unwrap();
        let join = |to| join(&base, to).map(|uri| uri.to_string());
        assert_eq!(join("/c?d=e").as_deref(), Some("https://hub.co/c?d=e"));
        assert_eq!(join("//cdn.co/c").as_deref(), Some("https://cdn.co/c"));
        assert_eq!(join("http://cdn.co/c").as_deref(), Some("http://cdn.co/c"));
        assert_eq!(join("c").as_deref(), Some("https://hub.co/a/c"));
        assert_eq!(join("../../cdn/./c?d=../e").as_deref(), Some("https://hub.co/cdn/c?d=../e"));
        assert_eq!(join("?d=e").as_deref(), Some("https://hub.co/a/b?d=e"));
        for nowhere in ["file:///etc/passwd", "data:c", "", "https://", "ftp://hub.co/x"] {
            assert_eq!(join(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn an_answer_that_is_endless_or_drips_is_given_up() {
        let soon = Instant::now() + JSON_TIME_MAX;
        assert_eq!(within(&b"abc"[..], 3, soon).unwrap(), b"abc");
        let error = within(std::io::repeat(b'a'), 100_000, soon).unwrap_err();
        assert!(matches!(error, Problem::Answer(text) if text.contains("more than 100000 bytes")));
        let late = Instant::now() - Duration::from_secs(1);
        let error = within(std::io::repeat(b'a').take(1 << 20), 1 << 30, late).unwrap_err();
        assert!(matches!(error, Problem::Unreachable(text) if text.contains("too slowly")));
    }

    #[test]
    fn a_list_names_files_their_sizes_and_what_hashes_they_have() {
        let file = |entry: Value| listed(&entry).map(|(_, file)| file);
        let (git, sha) = ("ab".repeat(20), "cd".repeat(32));
        let entry = serde_json::json!({"type": "file", "path": "a", "size": 3, "oid": git,
            "lfs": {"oid": sha}});
        assert_eq!(file(entry.clone()).unwrap(), Listed { bytes: 3, hash: Hash::sha256(&sha) });
        let mut small = entry.clone();
        small["lfs"] = Value::Null;
        assert_eq!(file(small.clone()).unwrap().hash, Hash::git(&git));
        small["oid"] = "0".into();
        assert_eq!(file(small).unwrap().hash, None);
        for (field, bad) in
            [("path", "../a"), ("path", "a/b"), ("type", "directory"), ("size", "3")]
        {
            let mut entry = entry.clone();
            entry[field] = bad.into();
            assert_eq!(file(entry), None, "{field} {bad}");
        }
    }

    #[test]
    fn a_proxys_user_and_password_are_unpacked() {
        let pair = user_and_password(b"Basic dXNlcjpzQGM6cmV0").unwrap();
        assert_eq!(pair, ("user".to_owned(), "s@c:ret".to_owned()));
        assert_eq!(user_and_password(b"Bearer x"), None);
    }

    #[test]
    fn the_next_page_of_a_list_is_found_among_its_links() {
        let next = |links: &'static str| {
            let headers = [(header::LINK, links.parse().unwrap())].into_iter().collect();
            next_page(&headers).map(str::to_owned)
        };
        assert_eq!(next("<https://h/?c=1>; rel=\"next\"").as_deref(), Some("https://h/?c=1"));
        let second = next("<https://h/?a>; rel=\"first\", <https://h/?b,c>; rel=\"next\"");
        assert_eq!(second.as_deref(), Some("https://h/?b,c"));
        assert_eq!(next("<https://h/?c=1>; rel=\"first\""), None);
    }
}
