//! Several requests on one session at once: they pipeline, so eight at a time take little longer than one.
//!
//! To start a thread costs as much as two or three requests cost their caller, so the calling thread works with them, and
//! few threads are started for few items.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// More does not help: 32 threads on one session were measured to do no more than twice what 8 do, and each costs memory.
const THREADS: usize = 16;

/// How many threads help the calling one.
fn helpers(items: usize) -> usize {
    (items / 2).min(THREADS - 1)
}

/// Does `work` for each item, several at a time, and returns the results in the order of the items.
pub fn in_parallel<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    if items.len() <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let one_thread = || {
        let mut done = Vec::new();
        while let Some((index, item)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).map(|item| (index, item))
        } {
            done.push((index, work(item)));
        }
        done
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..helpers(items.len())).map(|_| scope.spawn(one_thread)).collect();
        let mut done = one_thread();
        done.extend(threads.into_iter().flat_map(|thread| thread.join().expect("the work does not panic")));
        done
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(in_parallel(&items, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(in_parallel(&[], |item: &usize| *item), Vec::<usize>::new());
    }
}
