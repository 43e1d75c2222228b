//! What a ZooKeeper server committed, read from its transaction log: who did what, in which order.
//!
//! The log is the only witness that does not depend on a client: it holds every change, with its session, also of nodes that
//! are gone again. Everything that was acknowledged is in the file; a transaction that is being written is left out.

use std::{collections::HashMap, fs, io, path::Path};

use crate::jute::Input;

/// One committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// The session that asked for it; for `CreateSession` and `CloseSession` the one that began or ended.
    pub session: i64,
    /// Its place in the total order.
    pub zxid: i64,
    /// Milliseconds since the epoch, by the server's clock.
    pub time_ms: i64,
    /// What it changed.
    pub kind: TxnKind,
}

/// What a transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnKind {
    /// A session began.
    CreateSession,
    /// A session ended, by its client or by expiry, and with it its ephemeral znodes.
    CloseSession,
    /// A znode of any kind was made; `path` has its final name.
    Create {
        /// Where.
        path: String,
        /// With what.
        data: Vec<u8>,
    },
    /// A znode was deleted, but not because its session ended: that is part of `CloseSession`.
    Delete {
        /// Where.
        path: String,
    },
    /// A znode got new data.
    SetData {
        /// Where.
        path: String,
        /// What is there now.
        data: Vec<u8>,
    },
    /// A request that was refused, with ZooKeeper's error code (-110: node exists). It changed nothing.
    Error(i32),
    /// Demanded that there is a znode, as part of several changes at once.
    Check {
        /// Where.
        path: String,
    },
    /// Several changes at once.
    Multi(Vec<TxnKind>),
    /// Anything else, with ZooKeeper's operation code.
    Other(i32),
}

/// Reads all logs below a server's data directory, oldest transaction first.
pub fn read(data_dir: &Path) -> io::Result<Vec<Txn>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(data_dir.join("version-2"))? {
        let entry = entry?;
        let name = entry.file_name();
        // The suffix is the zxid of the first transaction in it.
        if let Some(Ok(first)) = name.to_string_lossy().strip_prefix("log.").map(|hex| u64::from_str_radix(hex, 16)) {
            logs.push((first, entry.path()));
        }
    }
    logs.sort();
    let mut txns = Vec::new();
    for (_, path) in logs {
        txns.extend(parse(&fs::read(path)?));
    }
    Ok(txns)
}

/// With each of several changes at once as a transaction of its own. Where they demand that there is a znode, they are those of the
/// session that made it: our sessions write so that have a node of their own, over another connection.
#[must_use]
pub fn spread(txns: Vec<Txn>) -> Vec<Txn> {
    let mut makers: HashMap<String, i64> = HashMap::new();
    let mut spread = Vec::with_capacity(txns.len());
    for txn in txns {
        let Txn { session, zxid, time_ms, kind } = txn;
        let kinds = if let TxnKind::Multi(kinds) = kind { kinds } else { vec![kind] };
        let demanded = kinds.iter().find_map(|kind| match kind {
            TxnKind::Check { path } => makers.get(path),
            _ => None,
        });
        let session = demanded.copied().unwrap_or(session);
        for kind in kinds {
            if let TxnKind::Create { path, .. } = &kind {
                makers.insert(path.clone(), session);
            }
            spread.push(Txn { session, zxid, time_ms, kind });
        }
    }
    spread
}

/// Reads one log file as far as it is whole: to the zeros behind its end, or to a transaction that was cut off.
#[must_use]
pub fn parse(file: &[u8]) -> Vec<Txn> {
    let mut input = Input(file);
    if input.bytes(4) != Some(b"ZKLG") || input.bytes(4 + 8).is_none() {
        return Vec::new();
    }
    std::iter::from_fn(|| record(&mut input)).collect()
}

fn record(input: &mut Input<'_>) -> Option<Txn> {
    let checksum = input.long()?;
    let entry = input.buffer()?;
    let end = input.bytes(1)?;
    if entry.is_empty() || end != b"B" || checksum != i64::from(adler32(entry)) {
        return None;
    }
    let mut entry = Input(entry);
    let session = entry.long()?;
    let _cxid = entry.int()?;
    let zxid = entry.long()?;
    let time_ms = entry.long()?;
    let kind = kind(entry.int()?, &mut entry)?;
    Some(Txn { session, zxid, time_ms, kind })
}

fn kind(code: i32, body: &mut Input<'_>) -> Option<TxnKind> {
    Some(match code {
        -10 => TxnKind::CreateSession,
        -11 => TxnKind::CloseSession,
        // create, create2, createContainer, createTTL
        1 | 15 | 19 | 21 => TxnKind::Create { path: body.string()?, data: body.buffer()?.to_vec() },
        // delete, deleteContainer
        2 | 20 => TxnKind::Delete { path: body.string()? },
        5 => TxnKind::SetData { path: body.string()?, data: body.buffer()?.to_vec() },
        -1 => TxnKind::Error(body.int()?),
        13 => TxnKind::Check { path: body.string()? },
        14 => {
            let parts = 0..body.int()?;
            let part = |_| {
                let code = body.int()?;
                kind(code, &mut Input(body.buffer()?))
            };
            TxnKind::Multi(parts.map(part).collect::<Option<_>>()?)
        }
        other => TxnKind::Other(other),
    })
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (mut a, mut b) = (1, 0);
    for byte in bytes {
        a = (a + u32::from(*byte)) % MODULUS;
        b = (b + a) % MODULUS;
    }
    b << 16 | a
}
