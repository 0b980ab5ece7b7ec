//! Tokens by day, tenant and adapter.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::account::Counts;
use crate::adapter::OTHERS;

/// Rows of all days together. At the limit the oldest day goes; if there is no other day, a further
/// adapter counts as [`OTHERS`].
const ROWS_MAX: usize = 1 << 16;
const DAY_S: u64 = 24 * 60 * 60;

/// What a row is of: a day since 1970 in UTC, a tenant (`None` on a server without keys), and the
/// name of an adapter or of the base.
pub(super) type Of = (u64, Option<String>, String);

/// All rows, in memory alone: they begin with the server.
pub(super) struct Ledger {
    rows: Mutex<BTreeMap<Of, Arc<Counts>>>,
    rows_max: usize,
}

impl Ledger {
    pub fn new() -> Self {
        Self { rows: Mutex::default(), rows_max: ROWS_MAX }
    }

    /// The row that a request of now counts in to its end.
    pub fn row(&self, now_s: u64, tenant: Option<&str>, adapter: &str) -> Arc<Counts> {
        let day = now_s / DAY_S;
        let mut of = (day, tenant.map(str::to_owned), adapter.to_owned());
        // Whatever happened while it was held, it is whole.
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.len() >= self.rows_max && !rows.contains_key(&of) {
            match rows.keys().next().map(|oldest| oldest.0) {
                Some(oldest) if oldest < day => {
                    tracing::warn!(day = %day_name(oldest), "usage is full; its oldest day goes");
                    rows.retain(|row, _| row.0 > oldest);
                }
                _ => of.2 = OTHERS.to_owned(),
            }
        }
        rows.entry(of).or_default().clone()
    }

    /// Rows in which something was counted, the oldest day first.
    pub fn list(&self) -> Vec<(Of, Arc<Counts>)> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let used = rows.iter().filter(|(_, counts)| counts.requests.load(Ordering::Relaxed) > 0);
        used.map(|(of, counts)| (of.clone(), counts.clone())).collect()
    }
}

/// A day as `2026-01-31`.
pub(super) fn day_name(day: u64) -> String {
    let start = i64::try_from(day * DAY_S).ok();
    let start = start.and_then(|s| jiff::Timestamp::from_second(s).ok());
    start.map_or_else(|| "?".to_owned(), |start| start.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ledger: &Ledger) -> Vec<(u64, String)> {
        ledger.list().into_iter().map(|((day, _, adapter), _)| (day, adapter)).collect()
    }

    #[test]
    fn a_full_ledger_loses_its_oldest_day_and_then_the_names_of_adapters() {
        let ledger = Ledger { rows_max: 3, ..Ledger::new() };
        let count = |now_s: u64, adapter: &str| {
            ledger.row(now_s, Some("a"), adapter).requests.fetch_add(1, Ordering::Relaxed);
        };
        count(DAY_S - 1, "x");
        count(DAY_S - 2, "y");
        count(DAY_S, "x");
        assert_eq!(names(&ledger), [(0, "x".into()), (0, "y".into()), (1, "x".into())]);
        count(DAY_S, "y");
        assert_eq!(names(&ledger), [(1, "x".into()), (1, "y".into())]);
        ["z", "v", "w", "x"].into_iter().for_each(|adapter| count(DAY_S + 1, adapter));
        let all = ["other", "x", "y", "z"].map(|name| (1, name.to_owned()));
        assert_eq!(names(&ledger), all);
        let others = ledger.row(DAY_S, Some("a"), "other");
        assert_eq!(others.requests.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_day_is_one_of_utc() {
        assert_eq!(day_name(0), "1970-01-01");
        assert_eq!(day_name(1_709_251_199 / DAY_S), "2024-02-29");
    }
}
