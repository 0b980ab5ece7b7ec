//! `tessera inspect`: what an adapter holds, tensor by tensor, and whether it would be served.

use std::fmt::Write;

use clap::Args;

use super::base;
use super::terminal::{harmless_json, line};
use super::{CliError, print};
use crate::adapter::{Adapter, AdapterFile, Allowed, FileLimits, lower, note_on_base};
use crate::config::{ROWS_MAX, count_to, parse_bytes};
use crate::engine::CheckpointBase;
use crate::text::{AdapterTexts, TextError, TextFiles};

/// `tessera inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The adapter: a directory or a Hub id.
    adapter: String,
    /// The base model that it is for: a directory or a Hub id. Default: the built-in demo model.
    #[arg(long)]
    model: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Accept fields of adapter_config.json that are not known here.
    #[arg(long)]
    allow_unknown_config_keys: bool,
    /// Largest adapter file that is read.
    #[arg(
        long,
        env = "TESSERA_ADAPTER_FILE_BYTES",
        value_name = "BYTES",
        default_value = "4GiB",
        value_parser = parse_bytes
    )]
    adapter_file_bytes: u64,
    /// Largest rank of a module's change.
    #[arg(
        long,
        env = "TESSERA_MAX_ADAPTER_RANK",
        value_name = "RANK",
        default_value = "1024",
        value_parser = count_to(ROWS_MAX)
    )]
    max_adapter_rank: usize,
}

/// Runs the command. Success means that the adapter would be served.
///
/// # Errors
/// [`CliError::Adapter`] with the reason why it would not, or why there is no model to say.
pub fn run(args: &InspectArgs) -> Result<(), CliError> {
    let place = base::find_adapter(&args.adapter)?;
    // Read first: a directory without an adapter is told without loading a model.
    let limits = FileLimits::new(args.adapter_file_bytes);
    let (mut file, own) = place
        .read(|folder| Ok((AdapterFile::read(folder, &limits)?, TextFiles::of_adapter(folder))))?;
    let (checkpoint, texts) = base::with_texts(args.model.as_deref())?;
    file.notes.extend(text_notes(own, texts)?);
    let base = CheckpointBase::new(checkpoint);
    let allowed = Allowed {
        unknown_config_keys: args.allow_unknown_config_keys,
        rank_max: args.max_adapter_rank,
    };
    let adapter = lower(&file, &base, allowed).map_err(|error| {
        // Most adapters are for another model than the demo, and look broken beside it.
        let compared = format!(
            "{error}; it was compared with the built-in demo model, name the adapter's own with \
             --model"
        );
        CliError::Adapter(if args.model.is_none() { compared } else { error.to_string() })
    })?;
    file.notes.extend(note_on_base(&file.config, args.model.as_slice()));
    if args.model.is_none() {
        let note = "compared with the built-in demo model; --model names the adapter's own";
        file.notes.push(note.to_owned());
    }
    let notes = &file.notes;
    let json = || harmless_json(&format!("{:#}\n", adapter.describe(notes)));
    print(&if args.json { json() } else { as_table(&adapter, notes) })
}

/// What the text files beside the adapter say, or that they were not looked at.
fn text_notes(
    own: Result<TextFiles, TextError>,
    texts: Option<AdapterTexts>,
) -> Result<Vec<String>, CliError> {
    let Some(texts) = texts else {
        let note = "the model has no tokenizer.json: text files of the adapter were not read";
        return Ok(vec![note.to_owned()]);
    };
    let own = own.and_then(|own| texts.of_adapter(own));
    own.map(|own| own.notes).map_err(|error| CliError::Adapter(error.to_string()))
}

fn as_table(adapter: &Adapter, notes: &[String]) -> String {
    let mut text = String::new();
    let served = adapter.delta.bytes();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "method    {}", adapter.method);
    let _ = writeln!(text, "digest    {}", adapter.digest);
    let _ = writeln!(text, "rank max  {}", adapter.delta.rank_max());
    let _ = writeln!(text, "bytes     {} in the file, {served} as served", adapter.file_bytes());
    for note in notes {
        let _ = writeln!(text, "note      {}", line(note));
    }
    text.push('\n');
    let heading = ["tensor", "site", "part", "bytes"].map(str::to_owned);
    let lines = adapter.report.lines.iter().map(|row| {
        let site = if row.site.is_empty() { "(shared)" } else { &row.site };
        [line(&row.tensor), line(site), line(&row.part), row.bytes.to_string()]
    });
    let rows: Vec<_> = std::iter::once(heading).chain(lines).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [a, b, c, d] = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    for [tensor, site, part, bytes] in &rows {
        let _ = writeln!(text, "{tensor:a$}  {site:b$}  {part:c$}  {bytes:>d$}");
    }
    text
}
