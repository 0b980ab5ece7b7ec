//! Who may stay when there are more connections than there may be: whoever keeps the server waiting
//! goes first, and there is always a place to ask how the server is.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::http::settings::HttpSettings;

/// Places above the limit, whose connections may only ask how the server is.
const PROBES_MAX: usize = 128;
/// A connection on such a place that has not asked makes room after so long.
const PROBE_STAYS: Duration = Duration::from_millis(20);
/// For the head of such a request.
const PROBE_HEAD: Duration = Duration::from_secs(1);
/// A connection without a request makes room after so long: one that has just come may have sent
/// its request already.
const IDLE_STAYS: Duration = Duration::from_millis(100);
/// So does one whose body does not come, or that does not take its answer.
const SLOW_STAYS: Duration = Duration::from_secs(1);
/// Found at once when room is needed, so that not every connection of a flood looks at all others.
const FOUND_MAX: usize = 32;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::http) enum Waits {
    /// The server.
    Not,
    /// Its client's next request.
    ForRequest,
    /// The rest of a body.
    ForBody,
    /// Its client's taking what was written.
    ForReader,
}

/// A connection's place. Others see in it how long it has kept the server waiting.
#[derive(Debug)]
pub(in crate::http) struct Seat {
    number: u64,
    peer: Option<IpAddr>,
    /// Whether it may only ask how the server is.
    pub is_for_probes: bool,
    waits: Mutex<(Waits, Instant)>,
    must_leave: AtomicBool,
    told: Notify,
}

impl Seat {
    /// Since now, unless it has been so before.
    pub fn waits(&self, waits: Waits) {
        let mut held = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 != waits {
            *held = (waits, Instant::now());
        }
    }

    /// How long the head of a request may take.
    pub fn head_limit(&self, limits: &HttpSettings) -> Duration {
        let limit = Duration::from_millis(limits.header_read_timeout_ms);
        if self.is_for_probes { limit.min(PROBE_HEAD) } else { limit }
    }

    /// Its connection is looked at for the first time: what has been sent already is read now.
    pub fn begin(&self) {
        let mut held = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        *held = (Waits::ForRequest, Instant::now());
    }

    /// Waits until it must make room for another.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether it must make room for another.
    pub fn must_leave(&self) -> bool {
        self.must_leave.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.must_leave.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// How long it has kept the server waiting, if that is long enough to make room.
    fn waited(&self) -> Option<Duration> {
        let (waits, since) = *self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = since.elapsed();
        let stays = match waits {
            Waits::Not => return None,
            _ if self.is_for_probes => PROBE_STAYS,
            Waits::ForRequest => IDLE_STAYS,
            Waits::ForBody | Waits::ForReader => SLOW_STAYS,
        };
        (waited >= stays && !self.must_leave()).then_some(waited)
    }
}

/// The places of all connections.
#[derive(Debug)]
pub(in crate::http) struct Seats {
    connections_max: usize,
    table: Mutex<Table>,
    /// A place has become free.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    seats: BTreeMap<u64, Arc<Seat>>,
    /// Of those that need not leave.
    ordinary: usize,
    probes: usize,
    /// Ordinary ones that may make room, the last first.
    found: Vec<Arc<Seat>>,
}

impl Table {
    fn insert(&mut self, peer: Option<IpAddr>, is_for_probes: bool) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            number: self.next,
            peer,
            is_for_probes,
            // Nobody has looked at it.
            waits: Mutex::new((Waits::Not, Instant::now())),
            must_leave: AtomicBool::new(false),
            told: Notify::new(),
        });
        self.next += 1;
        self.seats.insert(seat.number, seat.clone());
        *self.count(&seat) += 1;
        seat
    }

    fn count(&mut self, seat: &Seat) -> &mut usize {
        if seat.is_for_probes { &mut self.probes } else { &mut self.ordinary }
    }

    fn evict(&mut self, seat: &Seat) {
        seat.tell();
        *self.count(seat) -= 1;
    }

    /// The one that has waited longest of the client that has most who wait: a proxy is one client,
    /// but its connections are busy.
    fn victim(&mut self) -> Option<Arc<Seat>> {
        let still = |table: &mut Self| {
            // It may have gone by itself since it was found.
            let is_here = |seat: &Arc<Seat>| table.seats.contains_key(&seat.number);
            let mut found = std::iter::from_fn(|| table.found.pop());
            found.find(|seat| is_here(seat) && seat.waited().is_some())
        };
        if let Some(seat) = still(self) {
            return Some(seat);
        }
        let mut by_peer: HashMap<_, Vec<_>> = HashMap::new();
        for seat in self.seats.values().filter(|seat| !seat.is_for_probes) {
            if let Some(waited) = seat.waited() {
                by_peer.entry(client(seat.peer)).or_default().push((waited, seat.clone()));
            }
        }
        let mut most = by_peer.into_values().max_by_key(Vec::len)?;
        most.sort_by_key(|(waited, _)| std::cmp::Reverse(*waited));
        self.found = most.into_iter().take(FOUND_MAX).rev().map(|(_, seat)| seat).collect();
        still(self)
    }
}

/// One client has all addresses of its network of IPv6.
fn client(peer: Option<IpAddr>) -> Option<IpAddr> {
    peer.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    })
}

impl Seats {
    /// With so many ordinary places.
    pub fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self { connections_max, table: Mutex::default(), freed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing in between leaves it half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if need be that of a connection that keeps the server waiting, or one for probes.
    /// Also whether another must leave for it. Waits while even those are taken: whoever connects
    /// meanwhile waits in the kernel.
    pub async fn take(self: &Arc<Self>, peer: Option<IpAddr>) -> (Taken, bool) {
        loop {
            if let Some((seat, has_evicted)) = self.try_take(peer) {
                return (Taken { seats: self.clone(), seat }, has_evicted);
            }
            tokio::select! {
                () = self.freed.notified() => {}
                () = tokio::time::sleep(PROBE_STAYS) => {}
            }
        }
    }

    fn try_take(&self, peer: Option<IpAddr>) -> Option<(Arc<Seat>, bool)> {
        let mut table = self.lock();
        if table.ordinary < self.connections_max {
            return Some((table.insert(peer, false), false));
        }
        if let Some(seat) = table.victim() {
            table.evict(&seat);
            return Some((table.insert(peer, false), true));
        }
        if table.probes < PROBES_MAX {
            return Some((table.insert(peer, true), false));
        }
        let mut probes = table.seats.values().filter(|seat| seat.is_for_probes);
        let oldest = probes.find(|seat| seat.waited().is_some())?.clone();
        table.evict(&oldest);
        Some((table.insert(peer, true), true))
    }
}

/// A place that is taken until this is dropped.
pub(in crate::http) struct Taken {
    seats: Arc<Seats>,
    pub seat: Arc<Seat>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        table.seats.remove(&self.seat.number);
        // The place of one that had to leave is another's by now.
        if !self.seat.must_leave() {
            *table.count(&self.seat) -= 1;
        }
        drop(table);
        self.seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// As if it had waited for so long.
    fn waited(taken: &Taken, waits: Waits, ms: u64) {
        let since = Instant::now().checked_sub(Duration::from_millis(ms)).unwrap();
        *taken.seat.waits.lock().unwrap() = (waits, since);
    }

    fn take(seats: &Arc<Seats>, peer: Option<IpAddr>) -> Option<Taken> {
        let seats = seats.clone();
        seats.try_take(peer).map(|(seat, _)| Taken { seats, seat })
    }

    #[test]
    fn whoever_keeps_the_server_waiting_makes_room() {
        let seats = Seats::new(6);
        let mut taken: Vec<_> = [1, 1, 1, 2, 2, 2]
            .into_iter()
            .map(|peer| take(&seats, address(peer)).unwrap())
            .collect();
        // Client 1 has two idle connections, client 2 one, which has been so for longest.
        for (index, waits, ms) in [
            (0, Waits::ForRequest, 200),
            (1, Waits::ForRequest, 300),
            (2, Waits::Not, 9000),
            (3, Waits::ForRequest, 5000),
            (4, Waits::ForBody, 500),
            (5, Waits::ForReader, 900),
        ] {
            waited(&taken[index], waits, ms);
        }
        let leave = |taken: &[Taken]| {
            let all = taken.iter().enumerate().filter(|(_, taken)| taken.seat.must_leave());
            all.map(|(index, _)| index).collect::<Vec<_>>()
        };
        let mut new = vec![take(&seats, address(3)).unwrap()];
        assert_eq!(leave(&taken), [1]);
        new.push(take(&seats, address(3)).unwrap());
        new.push(take(&seats, address(3)).unwrap());
        assert_eq!(leave(&taken), [0, 1, 3]);
        assert!(new.iter().all(|taken| !taken.seat.is_for_probes));
        // A body that has been coming for a second, and an answer that was not taken for one.
        waited(&taken[4], Waits::ForBody, 1100);
        new.push(take(&seats, None).unwrap());
        waited(&taken[5], Waits::ForReader, 1100);
        new.push(take(&seats, None).unwrap());
        assert_eq!(leave(&taken), [0, 1, 3, 4, 5]);
        // Nobody else waits: the next may only ask how the server is.
        let probe = take(&seats, None).unwrap();
        assert!(probe.seat.is_for_probes);
        drop(probe);
        // Who had to leave and has gone gives nothing back twice.
        taken.remove(0);
        assert!(take(&seats, None).unwrap().seat.is_for_probes);
        taken.retain(|taken| !taken.seat.must_leave());
        new.pop();
        assert!(!take(&seats, None).unwrap().seat.is_for_probes);
    }

    #[test]
    fn places_for_probes_are_taken_by_the_next_who_asks() {
        let seats = Seats::new(1);
        let busy = take(&seats, None).unwrap();
        busy.seat.waits(Waits::Not);
        let silent: Vec<_> = (0..PROBES_MAX).map(|_| take(&seats, address(1)).unwrap()).collect();
        assert!(take(&seats, address(2)).is_none(), "all have just come");
        waited(&silent[7], Waits::ForRequest, 30);
        let probe = take(&seats, address(2)).unwrap();
        assert!(probe.seat.is_for_probes && silent[7].seat.must_leave());
        assert!(take(&seats, address(2)).is_none());
        drop(probe);
        assert!(take(&seats, address(2)).is_some());
    }

    #[test]
    fn whoever_leaves_before_it_makes_room_gives_its_place_back_once() {
        let seats = Seats::new(40);
        for _ in 0..5 {
            let idle: Vec<_> = (0..40).map(|_| take(&seats, address(1)).unwrap()).collect();
            idle.iter().for_each(|taken| waited(taken, Waits::ForRequest, 200));
            // One makes room, and others are found that could.
            let new = take(&seats, address(2)).unwrap();
            assert!(seats.lock().found.len() > 20);
            drop(idle);
            assert_eq!(seats.lock().ordinary, 1);
            let more: Vec<_> = (0..39).map(|_| take(&seats, address(3)).unwrap()).collect();
            more.iter().for_each(|taken| taken.seat.waits(Waits::Not));
            new.seat.waits(Waits::Not);
            assert!(take(&seats, address(2)).unwrap().seat.is_for_probes);
            drop((new, more));
            let table = seats.lock();
            assert_eq!((table.ordinary, table.probes, table.seats.len()), (0, 0, 0));
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| client(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
