//! What an ensemble committed: the logs of its servers joined, without what was abandoned.
//!
//! A leader begins its reign with what it knows itself. Whatever another server has beyond that is truncated there, or stays
//! behind in an old file where that server is sent a snapshot. None of it was committed, for what a majority has in its logs
//! every later leader knows, too: that is what ZooKeeper promises. Release 3.8.0 breaks it when a server fails in the middle
//! of a sync (ZOOKEEPER-4643, ZOOKEEPER-4646), and then nothing that is built upon it can keep its own promises.

use std::collections::BTreeMap;

use crate::{Txn, txnlog::spread};

/// What one server has on its disk, and what it said.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its transaction logs.
    pub txns: Vec<Txn>,
    /// Of its reigns, with a quorum behind it: the last zxid that it knew before, and the one from which it counted on.
    pub reigns: Vec<(i64, i64)>,
    /// The id of each server that followed it, and the last zxid that server had when it came.
    pub followers: Vec<(usize, i64)>,
    /// How often it found its tree to be another one than the leader's.
    pub mismatches: usize,
}

impl Part {
    /// Adds what a server's own log says. The disk does not tell with what a reign began: a server that was to follow, and could
    /// not, may have logged what it was sent and yet not know it.
    #[must_use]
    pub fn with_log(mut self, log: &str) -> Part {
        let mut before = 0;
        for line in log.lines() {
            let number = |key: &str| {
                let (_, behind) = line.split_once(key)?;
                Some(behind.split(|end: char| !end.is_ascii_hexdigit()).next().unwrap_or(behind))
            };
            let zxid = |key| i64::from_str_radix(number(key)?, 16).ok();
            // No quorum without a follower.
            before = zxid(" lastProcessedZxid=0x").unwrap_or(before);
            self.reigns.extend(zxid("setting last processed zxid: 0x").map(|reign| (before, reign)));
            let id = || number("Synchronizing with Learner sid: ")?.parse().ok();
            self.followers.extend(id().zip(zxid(" peerLastZxid=0x")));
            self.mismatches += usize::from(line.contains("First digest mismatch on txn"));
        }
        self
    }
}

/// Joins what the servers with the ids 1, 2, 3, ... have, oldest first. Also says, in sentences, what ZooKeeper itself did
/// wrong.
#[must_use]
pub fn join(parts: &[Part]) -> (Vec<Txn>, Vec<String>) {
    let mut joined: BTreeMap<i64, &Txn> = BTreeMap::new();
    for txn in parts.iter().flat_map(|part| &part.txns) {
        joined.insert(txn.zxid, txn);
    }
    let mut wrong = Vec::new();
    for (before, reign) in parts.iter().flat_map(|part| part.reigns.iter().copied()) {
        joined.retain(|zxid, _| *zxid <= before || *zxid >= reign);
        if let Some((from, to)) = missing(parts, before, reign) {
            wrong.push(format!("ZooKeeper rolled back committed transactions, zxids {from:#x} to {to:#x}"));
        }
    }
    for (id, part) in (1..).zip(parts).filter(|(_, part)| part.mismatches > 0) {
        let times = part.mismatches;
        wrong.push(format!(
            "ZooKeeper's server {id} found {times} times that its tree is not the leader's (digest mismatch)"
        ));
    }
    (spread(joined.into_values().cloned().collect()), wrong)
}

/// What of that which is between these two a majority had: from where to where.
fn missing(parts: &[Part], before: i64, reign: i64) -> Option<(i64, i64)> {
    // By epoch, because a server that has a transaction has all earlier ones of the same epoch.
    let mut last: BTreeMap<i64, BTreeMap<usize, i64>> = BTreeMap::new();
    let logged = (1..).zip(parts).flat_map(|(id, part)| part.txns.iter().map(move |txn| (id, txn.zxid)));
    let followers = parts.iter().flat_map(|part| part.followers.iter().copied());
    // A new leader's zxid before its first transaction is none of a transaction.
    let is_one = |zxid: i64| zxid > before && zxid < reign && zxid & COUNTER != 0;
    for (id, zxid) in logged.chain(followers).filter(|(_, zxid)| is_one(*zxid)) {
        let of_server = last.entry(zxid & !COUNTER).or_default().entry(id).or_insert(zxid);
        *of_server = zxid.max(*of_server);
    }
    last.into_iter().find_map(|(epoch, servers)| {
        let mut zxids: Vec<i64> = servers.into_values().collect();
        zxids.sort_unstable();
        let to = *zxids.iter().rev().nth(parts.len() / 2)?;
        Some((before.max(epoch) + 1, to))
    })
}

/// The part of a zxid that counts the transactions of an epoch.
const COUNTER: i64 = 0xffff_ffff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TxnKind;

    fn zxid(epoch: i64, counter: i64) -> i64 {
        epoch << 32 | counter
    }

    /// A server that has so many transactions of these epochs.
    fn part(epochs: &[(i64, i64)]) -> Part {
        let zxids = epochs.iter().flat_map(|(epoch, last)| (1..=*last).map(|counter| zxid(*epoch, counter)));
        let txn = |zxid| Txn { session: 7, zxid, time_ms: 0, kind: TxnKind::CreateSession };
        Part { txns: zxids.map(txn).collect(), ..Part::default() }
    }

    /// How many transactions of each epoch are left, and what ZooKeeper did wrong.
    fn left(parts: &[Part]) -> (Vec<(i64, usize)>, Vec<String>) {
        let (txns, wrong) = join(parts);
        let mut epochs: BTreeMap<i64, usize> = BTreeMap::new();
        for txn in txns {
            *epochs.entry(txn.zxid >> 32).or_default() += 1;
        }
        (epochs.into_iter().collect(), wrong)
    }

    #[test]
    fn what_one_server_missed_another_has() {
        let mut parts = [part(&[(1, 3), (2, 2), (3, 4)]), part(&[(1, 3)]), part(&[(3, 4)])];
        parts[0].reigns = vec![(0, zxid(1, 0)), (zxid(1, 3), zxid(2, 0)), (zxid(2, 2), zxid(3, 0))];
        assert_eq!(left(&parts), (vec![(1, 3), (2, 2), (3, 4)], vec![]));
    }

    #[test]
    fn what_only_a_deposed_leader_had_was_not_committed() {
        let mut parts = [part(&[(1, 5)]), part(&[(1, 3), (2, 1)]), part(&[(1, 3), (2, 1)])];
        parts[1].reigns = vec![(zxid(1, 3), zxid(2, 0))];
        assert_eq!(left(&parts), (vec![(1, 3), (2, 1)], vec![]));
    }

    #[test]
    fn what_two_servers_had_and_the_next_leader_did_not_was_rolled_back() {
        // Both were told to truncate it, so that it is in no log any more.
        let mut parts = [part(&[(1, 3), (2, 1)]), part(&[(1, 3), (2, 1)]), part(&[(1, 3), (2, 1)])];
        parts[0].reigns = vec![(zxid(1, 3), zxid(2, 0))];
        parts[0].followers = vec![(2, zxid(1, 6)), (3, zxid(1, 5)), (3, zxid(2, 0))];
        let wrong = ["ZooKeeper rolled back committed transactions, zxids 0x100000004 to 0x100000005".to_owned()];
        assert_eq!(left(&parts), (vec![(1, 3), (2, 1)], wrong.to_vec()));

        // One has it in an old file.
        parts[0].followers = vec![(2, zxid(1, 6))];
        parts[2] = part(&[(1, 5), (2, 1)]);
        assert_eq!(left(&parts), (vec![(1, 3), (2, 1)], wrong.to_vec()));
    }

    #[test]
    fn two_servers_that_had_different_ones_had_none_that_was_committed() {
        let mut parts = [part(&[(1, 3), (3, 1)]), part(&[(1, 3), (3, 1)]), part(&[(1, 3), (3, 1)])];
        parts[0].reigns = vec![(zxid(1, 3), zxid(3, 0))];
        parts[0].followers = vec![(2, zxid(1, 4)), (3, zxid(2, 1))];
        assert_eq!(left(&parts), (vec![(1, 3), (3, 1)], vec![]));
    }

    #[test]
    fn a_server_says_whom_it_led_and_from_when_and_whether_its_tree_is_right() {
        let log = "\
            18:44:38.905 [LearnerHandler-/10.77.0.1:57148] INFO o.LearnerHandler - Synchronizing with Learner sid: 1 \
            maxCommittedLog=0x8000004f6 minCommittedLog=0x800000302 lastProcessedZxid=0x8000004f6 peerLastZxid=0x8000004f5\n\
            18:44:38.933 [QuorumPeer[myid=2](plain=10.77.0.2:2181)(secure=disabled)] INFO o.Leader - Have quorum of supporters, \
            sids: [[1, 2]]; starting up and setting last processed zxid: 0x900000000\n\
            18:57:36.854 [CommitProcessor:1] ERROR o.DataTree - First digest mismatch on txn: 216172920830820357,0,64,17,-10\n";
        let part = Part::default().with_log(log);
        assert_eq!(part.reigns, [(zxid(8, 0x4f6), zxid(9, 0))]);
        assert_eq!((part.followers, part.mismatches), (vec![(1, zxid(8, 0x4f5))], 1));
    }
}
