//! What runs and waits, for those who watch it. Without a watcher it costs a look at a number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::ids::{Digest, SequenceId};

/// Between two views of a batch that goes on: no eye wants more, and each looks at all sequences.
const VIEW_PERIOD: Duration = Duration::from_millis(125);

/// What a request is called for those who watch it.
#[derive(Debug, PartialEq)]
pub struct Caption {
    /// The adapter's name, or the base's.
    pub model: String,
    /// Whose key it has, if there are keys.
    pub key: Option<String>,
}

/// All sequences at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// In the order in which they came.
    pub rows: Vec<ViewRow>,
    /// KV pages that running sequences reference, each once.
    pub blocks_used: usize,
}

/// One sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewRow {
    /// Which.
    pub id: SequenceId,
    /// What it is called; `None` if nobody said so.
    pub caption: Option<Arc<Caption>>,
    /// Whose it is: [`Share::tenant`](crate::request::Share::tenant).
    pub tenant: Digest,
    /// Whether it has a place in the batch.
    pub is_running: bool,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Of them, those that the prefix cache spared.
    pub cached_tokens: u32,
    /// Tokens whose KV is there, of the prompt and behind it.
    pub computed_tokens: u32,
    /// Tokens drawn.
    pub generated_tokens: u32,
    /// Tokens that it may draw.
    pub tokens_max: u32,
    /// KV pages that it references; sequences with equal beginnings share some.
    pub blocks: u32,
}

/// Where the engine shows its batch.
#[derive(Debug, Default)]
pub struct Window {
    shown: watch::Sender<Arc<View>>,
}

impl Window {
    /// Watches until the receiver is dropped. It learns of the first view after this call, of each
    /// that it has time for, and of the last, which is empty. A receiver alone keeps no sequence.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.shown.subscribe()
    }

    /// Shows a view to all who watch.
    pub fn show(&self, view: View) {
        self.shown.send_replace(Arc::new(view));
    }

    fn is_watched(&self) -> bool {
        self.shown.receiver_count() > 0
    }
}

/// When the next view is due.
#[derive(Debug, Default)]
pub(super) struct Views {
    last: Option<Instant>,
}

impl Views {
    /// Whether somebody would see a view now. A batch that has just become empty is always shown:
    /// nothing comes after it.
    pub fn are_due(&mut self, window: &Window, is_empty: bool) -> bool {
        if !window.is_watched() {
            return false;
        }
        let now = Instant::now();
        let is_due = self.last.is_none_or(|last| now - last >= VIEW_PERIOD);
        if is_due {
            self.last = Some(now);
        }
        is_due || is_empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_made_for_watchers_alone_a_few_a_second_and_of_an_empty_batch() {
        let (window, mut views) = (Window::default(), Views::default());
        assert!(!views.are_due(&window, false) && !views.are_due(&window, true), "nobody watches");
        let watcher = window.watch();
        assert!(views.are_due(&window, false), "the first");
        assert!(!views.are_due(&window, false), "too soon");
        assert!(views.are_due(&window, true), "the last");
        views.last = Instant::now().checked_sub(VIEW_PERIOD);
        assert!(views.are_due(&window, false), "after a while");
        views.last = None;
        drop(watcher);
        assert!(!views.are_due(&window, false), "nobody watches any more");
    }
}
