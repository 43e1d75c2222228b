//! Whether the daemon still does what it should: decisions as values, with the time as data.

use std::time::{Duration, Instant};

use zk_session::SessionId;

use crate::line::Word;

/// Between two questions whether the daemon's loop goes round.
const ASK: Duration = Duration::from_secs(5);

/// A loop that does not answer for so long is stuck. Every request in it is answered within 2/3 of the session timeout, or
/// the session is lost; so with a longer timeout it is given twice that.
const STUCK: Duration = Duration::from_secs(20);

/// What the guard knows of one life of the daemon.
#[derive(Debug)]
pub(crate) struct Vigil {
    deadline: bool,
    sessions: Vec<SessionId>,
    timeout: Duration,
    /// When the last acknowledged write to the daemon's own node was sent; nothing while it need not prove anything.
    proved: Option<Instant>,
    /// Since when it owes an answer, and when it is asked next.
    asked: Option<Instant>,
    ask_at: Instant,
    killed: bool,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Kill(&'static str),
    Ping,
    Wait(Option<Instant>),
}

impl Vigil {
    pub(crate) fn new(deadline: bool, now: Instant) -> Self {
        let (sessions, timeout) = (Vec::new(), Duration::ZERO);
        Vigil { deadline, sessions, timeout, proved: None, asked: None, ask_at: now + ASK, killed: false }
    }

    /// All sessions of this life. Ending one that is over does no harm.
    pub(crate) fn sessions(&self) -> &[SessionId] {
        &self.sessions
    }

    pub(crate) fn hear(&mut self, word: Word, now: Instant) {
        match word {
            Word::Owns { session, timeout } => {
                // The daemon itself ends the earlier ones; two are enough for the case that it dies over that.
                if self.sessions.len() >= 4 {
                    self.sessions.remove(0);
                }
                self.sessions.push(session);
                self.timeout = timeout;
            }
            Word::Proved { age } => self.proved = now.checked_sub(age).max(self.proved),
            Word::Released => self.proved = None,
            Word::Goes => self.asked = None,
        }
    }

    pub(crate) fn pinged(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
        self.ask_at = now + ASK;
    }

    pub(crate) fn killed(&mut self) {
        self.killed = true;
    }

    /// The daemon kills what it runs at 3/4 of the session timeout after its last proof, and says so. The guard does it
    /// when the daemon can't: at 5/6, well before the ensemble declares it gone after the whole timeout.
    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        if self.killed {
            return Verdict::Wait(None);
        }
        let deadline = self.proved.filter(|_| self.deadline).map(|proved| proved + self.timeout * 5 / 6);
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Verdict::Kill("it could not prove for 5/6 of the session timeout that it is registered");
        }
        let stuck = self.asked.map(|asked| asked + STUCK.max(self.timeout * 2));
        if stuck.is_some_and(|stuck| now >= stuck) {
            return Verdict::Kill("its loop is stuck");
        }
        if self.asked.is_none() && now >= self.ask_at {
            return Verdict::Ping;
        }
        let ask_at = self.asked.is_none().then_some(self.ask_at);
        Verdict::Wait([deadline, stuck, ask_at].into_iter().flatten().min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(6);

    fn registered() -> (Vigil, Instant) {
        let now = Instant::now();
        let mut vigil = Vigil::new(true, now);
        vigil.hear(Word::Owns { session: SessionId(1), timeout: T }, now);
        vigil.hear(Word::Proved { age: Duration::ZERO }, now);
        (vigil, now)
    }

    #[test]
    fn a_daemon_that_freezes_is_killed_before_its_session_expires() {
        let (vigil, now) = registered();
        assert_eq!(vigil.verdict(now + T * 5 / 6 - Duration::from_secs(1)), Verdict::Wait(Some(now + T * 5 / 6)));
        assert!(matches!(vigil.verdict(now + T * 5 / 6), Verdict::Kill(_)));
    }

    #[test]
    fn a_proof_counts_from_when_it_was_sent() {
        let (mut vigil, now) = registered();
        let later = now + Duration::from_secs(3);
        vigil.hear(Word::Proved { age: Duration::from_secs(2) }, later);
        assert!(matches!(vigil.verdict(now + Duration::from_secs(5)), Verdict::Ping | Verdict::Wait(_)));
        assert!(matches!(vigil.verdict(now + Duration::from_secs(6)), Verdict::Kill(_)));
        // An older one that comes late changes nothing.
        vigil.hear(Word::Proved { age: T }, later);
        assert!(matches!(vigil.verdict(now + Duration::from_secs(5)), Verdict::Ping | Verdict::Wait(_)));
    }

    #[test]
    fn a_daemon_that_runs_nothing_may_wait_for_zookeeper_for_ever() {
        let (mut vigil, now) = registered();
        vigil.hear(Word::Released, now);
        vigil.hear(Word::Goes, now);
        vigil.pinged(now);
        vigil.hear(Word::Goes, now);
        assert!(!matches!(vigil.verdict(now + T * 100), Verdict::Kill(_)));
    }

    #[test]
    fn a_loop_that_does_not_answer_is_stuck() {
        let (mut vigil, now) = registered();
        vigil.pinged(now);
        vigil.hear(Word::Proved { age: Duration::ZERO }, now + STUCK);
        assert!(matches!(vigil.verdict(now + STUCK - Duration::from_millis(1)), Verdict::Wait(_)));
        assert_eq!(vigil.verdict(now + STUCK), Verdict::Kill("its loop is stuck"));
        vigil.hear(Word::Goes, now + STUCK);
        assert!(!matches!(vigil.verdict(now + STUCK), Verdict::Kill(_)));
    }

    #[test]
    fn without_a_deadline_only_a_stuck_loop_is_killed() {
        let now = Instant::now();
        let mut vigil = Vigil::new(false, now);
        vigil.hear(Word::Owns { session: SessionId(1), timeout: T }, now);
        vigil.hear(Word::Proved { age: Duration::ZERO }, now);
        assert!(!matches!(vigil.verdict(now + T * 2), Verdict::Kill(_)));
    }
}
