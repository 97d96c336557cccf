//! Output of the daemon: its own log and what the sessions print, written to stderr by one thread.
//!
//! Whoever reads stderr may be slow or gone. So nobody but this thread ever writes to it; when it cannot keep up lines are
//! dropped and counted, and the daemon goes on serving.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};

/// Lines that may wait for stderr.
const QUEUE_LINES: usize = 4096;
/// How long the end of the daemon waits for stderr to take the rest.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of one line; the rest of a longer one is dropped.
pub(crate) const LINE_BYTES_MAX: usize = 4096;

/// Where lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogSink {
    lines: Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// The thread ends here: `tracing` holds a sink for good, so the queue never closes by itself.
    End,
}

/// The thread that writes. Its owner calls [`LogThread::finish`].
#[derive(Debug)]
pub(crate) struct LogThread {
    thread: JoinHandle<()>,
    finished: Receiver<()>,
}

/// Starts the thread.
pub(crate) fn start() -> std::io::Result<(LogSink, LogThread)> {
    let (lines, queue) = crossbeam_channel::bounded(QUEUE_LINES);
    let (ended, finished) = crossbeam_channel::bounded(1);
    let dropped = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&dropped);
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            while let Ok(Entry::Line(line)) = queue.recv() {
                let missed = count.swap(0, Ordering::Relaxed);
                let mut stderr = std::io::stderr().lock();
                if missed > 0 {
                    // A failed write has nowhere to be reported.
                    let _ = writeln!(
                        stderr,
                        "echelon-worker: {missed} lines were dropped because stderr was not read"
                    );
                }
                let _ = stderr.write_all(&line);
            }
            let _ = ended.send(());
        })?;
    Ok((LogSink { lines, dropped }, LogThread { thread, finished }))
}

impl LogSink {
    /// Queues bytes that end with a newline.
    fn push(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Entry::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues one line of a session's output, marked with who wrote it, control characters escaped.
    pub(crate) fn forward(&self, who: &str, line: &str) {
        self.push(format!("[{who}] {line}\n").into_bytes());
    }
}

impl LogThread {
    /// Waits until everything queued so far is written, a bounded time.
    pub(crate) fn finish(self, sink: &LogSink) {
        let told = sink.lines.send_timeout(Entry::End, FLUSH_LIMIT).is_ok();
        if told && self.finished.recv_timeout(FLUSH_LIMIT).is_ok() {
            // It sent its last word, so this returns at once; it cannot have panicked.
            let _ = self.thread.join();
        }
        // Else stderr is stuck; the process ends now and takes the thread along.
    }
}

/// `text` without control characters that could forge a line or move a terminal's cursor, cut to [`LINE_BYTES_MAX`].
pub(crate) fn escaped(text: &[u8]) -> String {
    let end = text.len().min(LINE_BYTES_MAX);
    let (text, _) = text.split_at(end);
    let text = String::from_utf8_lossy(text);
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\t' || !character.is_control() {
            line.push(character);
        } else {
            line.extend(character.escape_default());
        }
    }
    line
}

/// Lets `tracing` write through the sink: one event, one line, whatever a peer put into a field.
#[derive(Debug)]
pub(crate) struct EventWriter {
    sink: LogSink,
    line: Vec<u8>,
}

impl Write for EventWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for EventWriter {
    fn drop(&mut self) {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        self.sink.push(format!("{}\n", escaped(line)).into_bytes());
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogSink {
    type Writer = EventWriter;

    fn make_writer(&'a self) -> EventWriter {
        EventWriter {
            sink: self.clone(),
            line: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_says_r_079_r_213() {
        let (lines, queue) = crossbeam_channel::bounded(1);
        let sink = LogSink {
            lines,
            dropped: Arc::default(),
        };
        let mut event = tracing_subscriber::fmt::MakeWriter::make_writer(&sink);
        let long = "x".repeat(1 << 20);
        write!(event, "refused: \u{1b}[2J\nINFO all is well\r{long}\n").expect("memory");
        drop(event);
        let Ok(Entry::Line(line)) = queue.try_recv() else {
            panic!("no line");
        };
        let line = String::from_utf8(line).expect("text");
        assert!(
            line.starts_with("refused: \\u{1b}[2J\\nINFO all is well\\rxxx"),
            "{line}"
        );
        assert!(line.len() < 2 * LINE_BYTES_MAX && line.matches('\n').count() == 1);
    }

    #[test]
    fn output_of_a_session_cannot_forge_a_line_r_213() {
        assert_eq!(escaped(b"a\tb\x1b[2J\r\xff"), "a\tb\\u{1b}[2J\\r\u{fffd}");
        assert_eq!(
            escaped(&vec![b'x'; 2 * LINE_BYTES_MAX]).len(),
            LINE_BYTES_MAX
        );
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (lines, _queue) = crossbeam_channel::bounded(1);
        let sink = LogSink {
            lines,
            dropped: Arc::default(),
        };
        for _ in 0..3 {
            sink.forward("w0", "text");
        }
        assert_eq!(sink.dropped.load(Ordering::Relaxed), 2);
    }
}
