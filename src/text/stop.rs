//! Strings that end a generation, found while the text streams.

/// What new text led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopOutcome {
    /// Text that no stop string can still take back. The stop string itself is in it only where
    /// [`StopMatcher::including`] says so.
    pub emit: String,
    /// The index of the stop string that is complete now.
    pub stopped: Option<usize>,
}

/// Cuts a stream of text before the first stop string.
///
/// The stop string whose last byte comes first wins, as it does in a server that looks after
/// each character; of those that end at the same byte the longest does, so that none of it is
/// shown. Where the text is cut into parts makes no difference.
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// The longest end of the text that begins a stop string.
    held: String,
    stopped: bool,
    /// The stop string is shown.
    includes: bool,
}

/// One string, matched byte by byte in constant time each (Knuth, Morris and Pratt).
struct Stop {
    text: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the first `n` bytes that also ends them.
    fallback: Vec<usize>,
    /// How many of its bytes end the text so far.
    matched: usize,
}

impl StopMatcher {
    /// An empty stop string never matches; requests with one are refused before.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().map(|text| Stop::new(text.into_bytes())).collect();
        Self { stops, held: String::new(), stopped: false, includes: false }
    }

    /// The same, cutting after the first stop string if `includes` says so.
    pub fn including(self, includes: bool) -> Self {
        Self { includes, ..self }
    }

    /// The text that may be shown after this one; none after a stop string is complete.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        self.push_if(true, text)
    }

    /// The same; unless `may_stop`, a stop string that ends in this text is text as any other.
    pub fn push_if(&mut self, may_stop: bool, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::default();
        }
        let from = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            self.stops.iter_mut().for_each(|stop| stop.push(byte));
            let complete = self.stops.iter().enumerate().filter(|(_, stop)| stop.is_complete());
            // Of equal ones the first in the list.
            let longest = complete.rev().max_by_key(|(_, stop)| stop.matched);
            if let Some((index, stop)) = longest.filter(|_| may_stop) {
                // Whole strings of UTF-8 match only between characters: this cannot split one.
                let cut = if self.includes { 0 } else { stop.matched };
                self.held.truncate(from + i + 1 - cut);
                self.stopped = true;
                return StopOutcome { emit: self.finish(), stopped: Some(index) };
            }
        }
        let keep = self.stops.iter().map(Stop::begun).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        StopOutcome { emit: std::mem::replace(&mut self.held, kept), stopped: None }
    }

    /// The text held back, once no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

impl Stop {
    fn new(text: Vec<u8>) -> Self {
        let mut fallback = vec![0; text.len() + 1];
        let mut matched = 0;
        for n in 1..text.len() {
            while matched > 0 && text[n] != text[matched] {
                matched = fallback[matched];
            }
            matched += usize::from(text[n] == text[matched]);
            fallback[n + 1] = matched;
        }
        Self { text, fallback, matched: 0 }
    }

    fn push(&mut self, byte: u8) {
        while self.matched > 0 && self.text.get(self.matched) != Some(&byte) {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.text.get(self.matched) == Some(&byte));
    }

    /// Bytes at the text's end that more text may make the whole of.
    fn begun(&self) -> usize {
        if self.is_complete() { self.fallback[self.matched] } else { self.matched }
    }

    fn is_complete(&self) -> bool {
        self.matched > 0 && self.matched == self.text.len()
    }
}
