//! How many lines are sent at once: as many as the server takes. Each that it refuses is sent
//! again, and waits meanwhile, so that too many would leave the server with nothing to do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Answers for each place, before one more place is tried.
const ANSWERS_PER_PLACE: usize = 4;

/// Places for lines on their way.
pub struct Pace {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    places: usize,
    places_max: usize,
    taken: usize,
    /// Since there were last more or fewer places.
    answers: usize,
    /// Counts the times that there were fewer: what was sent before says nothing new.
    cuts: u64,
}

/// A line's place, until it is dropped.
pub struct Place<'a> {
    pace: &'a Pace,
    cuts: u64,
}

impl Pace {
    /// Begins with all places, and never has more.
    pub fn new(places_max: usize) -> Self {
        let places_max = places_max.max(1);
        let state = State { places: places_max, places_max, taken: 0, answers: 0, cuts: 0 };
        Self { state: Mutex::new(state), freed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub async fn place(&self) -> Place<'_> {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.state();
                if state.taken < state.places {
                    state.taken += 1;
                    return Place { pace: self, cuts: state.cuts };
                }
            }
            freed.await;
        }
    }
}

impl Place<'_> {
    /// The server took the line.
    pub fn answered(self) {
        let mut state = self.pace.state();
        state.answers += 1;
        if state.answers >= state.places * ANSWERS_PER_PLACE && state.places < state.places_max {
            state.places += 1;
            state.answers = 0;
            drop(state);
            self.pace.freed.notify_one();
        }
    }

    /// The server has no room for it now.
    pub fn refused(self) {
        let mut state = self.pace.state();
        if state.cuts == self.cuts {
            state.places = (state.places / 2).max(1);
            state.answers = 0;
            state.cuts += 1;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pace.state().taken -= 1;
        self.pace.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_burst_that_is_refused_halves_the_places_once_and_answers_bring_them_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let pace = Pace::new(8);
            let mut burst = Vec::new();
            for _ in 0..8 {
                burst.push(pace.place().await);
            }
            burst.into_iter().for_each(Place::refused);
            assert_eq!(pace.state().places, 4);
            assert_eq!(pace.state().taken, 0);
            pace.place().await.refused();
            assert_eq!(pace.state().places, 2);
            for _ in 0..2 * ANSWERS_PER_PLACE {
                pace.place().await.answered();
            }
            assert_eq!(pace.state().places, 3);
            for _ in 0..8 * 8 * ANSWERS_PER_PLACE {
                pace.place().await.answered();
            }
            assert_eq!(pace.state().places, 8, "never more than at first");
            for _ in 0..9 {
                pace.place().await.refused();
            }
            assert_eq!(pace.state().places, 1, "never none");
        });
    }
}
