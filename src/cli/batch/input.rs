//! The lines of a batch: read once to check them all, and each again when its turn comes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::CliError;
use crate::http::batch_paths;
use crate::json;

/// Bytes of one line: as many as a server takes of one body.
const LINE_BYTES_MAX: usize = 32 << 20;
/// Lines of one batch; about a hundred bytes of each are kept in memory.
const LINES_MAX: usize = 10_000_000;
/// Faults that are told before the rest is only counted.
const FAULTS_TOLD_MAX: usize = 10;
/// Hexadecimal digits of what a line's answer is known by.
const ID_DIGITS: usize = 32;

/// A byte order mark.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// A line as OpenAI's batch API has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// One request, ready to be sent.
pub struct Request {
    /// The user's name of it.
    pub custom_id: String,
    /// What its answer is known by: a digest of all that the line says, in hexadecimal digits.
    pub id: String,
    /// Path of the API.
    pub url: String,
    /// The body as it stands in the line.
    pub body: Bytes,
}

struct Line {
    offset: u64,
    bytes: usize,
    model: usize,
}

/// All lines of a batch, checked.
pub struct Input {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
    /// Each model that a body names, and the line where it is first named; from 1.
    models: Vec<(String, usize)>,
}

impl Input {
    /// Reads and checks every line.
    ///
    /// # Errors
    /// Each line that cannot be sent, by its number and with what is wrong.
    pub fn open(path: &Path) -> Result<Self, CliError> {
        let shown = path.display();
        let unread = |e: io::Error| CliError::Usage(format!("{shown} cannot be read: {e}"));
        let file = File::open(path).map_err(unread)?;
        if !file.metadata().map_err(unread)?.is_file() {
            return Err(CliError::Usage(format!(
                "{shown} is not a file; a batch is read twice, and again when it is resumed"
            )));
        }
        let mut input = Self { path: path.to_owned(), file, lines: Vec::new(), models: Vec::new() };
        let (faults, count) = input.read_all().map_err(unread)?;
        if count > 0 {
            let more = count - faults.len();
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            return Err(CliError::Usage(format!("{shown}: {}{more}", faults.join("; "))));
        }
        if input.lines.is_empty() {
            return Err(CliError::Usage(format!("{shown} has no lines")));
        }
        Ok(input)
    }

    /// The faults that are told, and how many there are.
    fn read_all(&mut self) -> io::Result<(Vec<String>, usize)> {
        let mut reader = BufReader::new(self.file.try_clone()?);
        let mut known = Known::default();
        let (mut faults, mut count, mut offset) = (Vec::new(), 0, 0);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let limit = LINE_BYTES_MAX as u64 + 1;
            let bytes = (&mut reader).take(limit).read_until(b'\n', &mut line)?;
            if bytes == 0 {
                break;
            }
            let is_beyond = bytes > LINE_BYTES_MAX || number > LINES_MAX;
            if number == 1 && line.starts_with(BOM) {
                // As some editors write it; no line's request holds it.
                line.drain(..BOM.len());
                offset += BOM.len() as u64;
            }
            let bytes = line.len();
            let checked = match is_beyond {
                true => Err(format!(
                    "a line may have {LINE_BYTES_MAX} bytes and a batch {LINES_MAX} lines"
                )),
                false => known.check(number, &line),
            };
            match checked {
                Ok(model) => self.lines.push(Line { offset, bytes, model }),
                Err(fault) => {
                    count += 1;
                    if faults.len() < FAULTS_TOLD_MAX {
                        faults.push(format!("line {number}: {fault}"));
                    }
                }
            }
            if is_beyond {
                // What follows would be told by wrong numbers.
                break;
            }
            offset += bytes as u64;
        }
        self.models = known.models;
        Ok((faults, count))
    }

    /// Lines.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Models that bodies name, each with the first line that does; an empty one is no name.
    pub fn models(&self) -> &[(String, usize)] {
        &self.models
    }

    /// The model that the line at `index` names, as an index of [`Input::models`].
    pub fn model_of(&self, index: usize) -> usize {
        self.lines[index].model
    }

    /// The request of the line at `index`, from 0.
    ///
    /// # Errors
    /// When the file is not what it was when it was checked.
    pub fn request(&self, index: usize) -> Result<Request, CliError> {
        let Line { offset, bytes, .. } = self.lines[index];
        let changed = |why: String| {
            let shown = self.path.display();
            let number = index + 1;
            CliError::General(format!("{shown} changed while it was read, at line {number}: {why}"))
        };
        let mut line = vec![0; bytes];
        self.file.read_exact_at(&mut line, offset).map_err(|e| changed(e.to_string()))?;
        let raw = parse(&line).map_err(changed)?;
        Ok(Request {
            id: id(&raw),
            custom_id: raw.custom_id.into_owned(),
            url: raw.url.into_owned(),
            body: Bytes::copy_from_slice(raw.body.get().as_bytes()),
        })
    }
}

/// What earlier lines have said.
#[derive(Default)]
struct Known {
    /// Of each `custom_id` a hash, to the number of the line that has it.
    ids: HashMap<[u8; 16], usize>,
    models: Vec<(String, usize)>,
    /// Of each model its place in `models`.
    places: HashMap<String, usize>,
}

impl Known {
    /// The place of the model that a line names.
    fn check(&mut self, number: usize, line: &[u8]) -> Result<usize, String> {
        let raw = parse(line)?;
        let model = check(&raw)?;
        match self.ids.entry(short_hash(raw.custom_id.as_bytes())) {
            Entry::Vacant(free) => free.insert(number),
            Entry::Occupied(first) => {
                let (first, id) = (first.get(), &raw.custom_id);
                return Err(format!("line {first} has the custom_id {id:?} too"));
            }
        };
        let next = self.models.len();
        let place = *self.places.entry(model.clone()).or_insert(next);
        if place == next {
            self.models.push((model, number));
        }
        Ok(place)
    }
}

fn parse(line: &[u8]) -> Result<Raw<'_>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    if text.trim().is_empty() {
        return Err("it is empty".to_owned());
    }
    let expected =
        |why: &str| format!("expected an object with custom_id, method, url and body: {why}");
    json::from_str(text).map_err(|e| {
        let why = e.to_string();
        let why = why.split(" at line ").next().unwrap_or(&why);
        expected(&format!("{why} (column {})", e.column()))
    })
}

/// What a line asks for; the model that it names.
fn check(raw: &Raw<'_>) -> Result<String, String> {
    if raw.custom_id.is_empty() {
        return Err("its custom_id is empty".to_owned());
    }
    if raw.method != "POST" {
        return Err(format!("its method must be \"POST\", got {:?}", raw.method));
    }
    if !batch_paths().any(|path| path == raw.url) {
        let known: Vec<&str> = batch_paths().collect();
        return Err(format!("its url must be one of {}, got {:?}", known.join(", "), raw.url));
    }
    let body: Value = serde_json::from_str(raw.body.get()).map_err(|e| e.to_string())?;
    let Some(body) = body.as_object() else {
        return Err("its body must be an object".to_owned());
    };
    if body.get("stream").is_some_and(|stream| *stream != false && !stream.is_null()) {
        return Err("its body has \"stream\", and a batch has whole answers; leave it out".into());
    }
    Ok(body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// Each part with its length before it: no two lines have the same.
fn id(raw: &Raw<'_>) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [&*raw.custom_id, &*raw.url, raw.body.get()] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hash.finalize().to_hex()[..ID_DIGITS].to_owned()
}

fn short_hash(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}
