//! What a tenant has taken of its rates.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a tenant may take; `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    /// Requests at once.
    pub concurrency: Option<u32>,
}

/// Why a request has to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::http) enum Limited {
    /// Requests a minute.
    Requests { limit: u32, wait: Duration },
    /// Tokens a minute.
    Tokens { limit: u32, wait: Duration },
    /// Requests at once.
    Concurrency { limit: u32 },
}

/// One of the limits of a minute, for the headers of an answer.
pub(in crate::http) struct Left {
    /// `requests` or `tokens`.
    pub what: &'static str,
    pub limit: u32,
    pub remaining: u32,
    /// Until all of it is there again.
    pub reset: Duration,
}

/// What is taken, whatever the limits are: these may change while it is kept.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    requests: Level,
    tokens: Level,
    in_flight: u32,
}

/// What is taken and not yet given back by time. It may exceed the limit: the tokens of an answer
/// are known only when they are there.
#[derive(Debug, Default)]
struct Level {
    taken: f64,
    at: Option<Instant>,
}

impl Level {
    fn at(&mut self, now: Instant, per_minute: u32) -> f64 {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.taken = (self.taken - passed.as_secs_f64() * f64::from(per_minute) / 60.0).max(0.0);
        self.taken
    }

    /// Until no more than `most` is taken; `None` if that is so.
    fn wait(&mut self, now: Instant, per_minute: u32, most: f64) -> Option<Duration> {
        let over = self.at(now, per_minute) - most;
        (over > 0.0).then(|| Duration::from_secs_f64(over * 60.0 / f64::from(per_minute)))
    }
}

/// One of a tenant's requests at once, given back on drop.
pub(in crate::http) struct Place(Arc<Meter>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken().in_flight -= 1;
    }
}

impl Meter {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Whatever happened while it was held, the numbers are whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request, or takes nothing.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn begin(self: &Arc<Self>, rates: &Rates, now: Instant) -> Result<Place, Limited> {
        let mut taken = self.taken();
        if let Some(limit) = rates.concurrency.filter(|&limit| taken.in_flight >= limit) {
            return Err(Limited::Concurrency { limit });
        }
        if let Some(limit) = rates.requests_per_minute
            && let Some(wait) = taken.requests.wait(now, limit, f64::from(limit) - 1.0)
        {
            return Err(Limited::Requests { limit, wait });
        }
        if let Some(limit) = rates.tokens_per_minute
            && let Some(wait) = taken.tokens.wait(now, limit, f64::from(limit) - 1.0)
        {
            return Err(Limited::Tokens { limit, wait });
        }
        if rates.requests_per_minute.is_some() {
            taken.requests.taken += 1.0;
        }
        taken.in_flight += 1;
        Ok(Place(self.clone()))
    }

    /// Takes tokens, whether or not they are left.
    pub fn take_tokens(&self, rates: &Rates, tokens: u64, now: Instant) {
        if let Some(limit) = rates.tokens_per_minute {
            let level = &mut self.taken().tokens;
            level.at(now, limit);
            level.taken += tokens as f64;
        }
    }

    /// What is left of each limit of a minute.
    pub fn left(&self, rates: &Rates, now: Instant) -> Vec<Left> {
        let taken = &mut *self.taken();
        let all = [
            ("requests", rates.requests_per_minute, &mut taken.requests),
            ("tokens", rates.tokens_per_minute, &mut taken.tokens),
        ];
        let left = |(what, limit, level): (&'static str, Option<u32>, &mut Level)| {
            let limit = limit?;
            let remaining = (f64::from(limit) - level.at(now, limit)).max(0.0) as u32;
            let reset = level.wait(now, limit, 0.0).unwrap_or_default();
            Some(Left { what, limit, remaining, reset })
        };
        all.into_iter().filter_map(left).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_gives_back_what_a_minute_takes() {
        let meter = Arc::new(Meter::default());
        let rates = Rates { requests_per_minute: Some(2), ..Rates::default() };
        let start = Instant::now();
        let after = |s: u64| start + Duration::from_secs(s);
        let begin = |s| meter.begin(&rates, after(s)).map(drop);
        assert_eq!([begin(0), begin(0)], [Ok(()), Ok(())]);
        let limited = |s| Err(Limited::Requests { limit: 2, wait: Duration::from_secs(s) });
        // What is refused takes nothing.
        assert_eq!([begin(0), begin(10), begin(29)], [limited(30), limited(20), limited(1)]);
        assert_eq!([begin(30), begin(30)], [Ok(()), limited(30)]);
        let left = &meter.left(&rates, after(30))[0];
        assert_eq!((left.limit, left.remaining, left.reset.as_secs()), (2, 0, 60));
        let left = &meter.left(&rates, after(3600))[0];
        assert_eq!((left.remaining, left.reset.as_secs()), (2, 0));
    }

    #[test]
    fn tokens_beyond_the_limit_are_owed() {
        let meter = Arc::new(Meter::default());
        let rates = Rates { tokens_per_minute: Some(60), ..Rates::default() };
        let now = Instant::now();
        assert!(meter.begin(&rates, now).is_ok());
        meter.take_tokens(&rates, 100, now);
        let wait = Duration::from_secs(41);
        assert_eq!(meter.begin(&rates, now).map(drop), Err(Limited::Tokens { limit: 60, wait }));
        assert_eq!(meter.left(&rates, now)[0].remaining, 0);
        assert!(meter.begin(&rates, now + wait).is_ok());
    }

    #[test]
    fn a_place_is_given_back_when_it_is_dropped() {
        let meter = Arc::new(Meter::default());
        let rates = Rates { concurrency: Some(2), ..Rates::default() };
        let now = Instant::now();
        let places = [meter.begin(&rates, now).unwrap(), meter.begin(&rates, now).unwrap()];
        let limited = Err(Limited::Concurrency { limit: 2 });
        assert_eq!(meter.begin(&rates, now).map(drop), limited);
        drop(places);
        assert!(meter.begin(&rates, now).is_ok());
    }
}
