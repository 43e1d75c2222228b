//! How far a batch is, on a terminal.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// What has come of the lines so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) done: u32,
    /// All that ended otherwise.
    pub(crate) failed: u32,
    pub(crate) running: usize,
    /// How many bytes of the input have ended.
    pub(crate) bytes: u64,
}

/// A bar on standard error, or nothing where that is no terminal.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    size: Option<u64>,
    begun: Instant,
}

impl Progress {
    /// `size` is how many bytes the input has, if that is known.
    pub(crate) fn new(size: Option<u64>, wanted: bool) -> Self {
        let size = size.filter(|size| *size > 0);
        let bar = (wanted && io::stderr().is_terminal()).then(|| {
            let template = if size.is_some() { "[{bar:30}] {percent}% {msg}" } else { "{msg}" };
            let style = ProgressStyle::with_template(template).expect("the templates are sound");
            ProgressBar::new(size.unwrap_or(0)).with_style(style.progress_chars("#> "))
        });
        Progress { bar, size, begun: Instant::now() }
    }

    pub(crate) fn show(&self, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.set_position(tally.bytes);
            bar.set_message(sentence(tally, self.begun.elapsed(), self.size));
        }
    }

    /// Prints something that is to stay above the bar.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The counts, how many end in a second, and when the rest will have. Pure.
fn sentence(tally: &Tally, elapsed: Duration, size: Option<u64>) -> String {
    let Tally { done, failed, running, bytes } = *tally;
    let elapsed = elapsed.max(Duration::from_millis(1));
    let rate = (f64::from(done) + f64::from(failed)) / elapsed.as_secs_f64();
    let mut text = format!("{done} done, {failed} failed, {running} running, {rate:.1}/s");
    let left = size.and_then(|size| elapsed.as_secs().checked_mul(size.saturating_sub(bytes))?.checked_div(bytes));
    if let Some(left) = left {
        text.push_str(&format!(", {} left", humantime::format_duration(Duration::from_secs(left))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_that_of_the_bytes_left() {
        let tally = Tally { done: 30, failed: 10, running: 5, bytes: 100 };
        let text = |size| sentence(&tally, Duration::from_secs(20), size);
        assert_eq!(text(Some(400)), "30 done, 10 failed, 5 running, 2.0/s, 1m left");
        assert_eq!(text(Some(100)), "30 done, 10 failed, 5 running, 2.0/s, 0s left");
        assert_eq!(text(None), "30 done, 10 failed, 5 running, 2.0/s");
        assert_eq!(sentence(&Tally::default(), Duration::ZERO, Some(9)), "0 done, 0 failed, 0 running, 0.0/s");
    }
}
