//! What a session prints: forwarded line by line, the last lines kept for error texts (R-012).

use std::collections::VecDeque;

use tokio::net::unix::pipe;

use super::log::{escaped, LogSink, LINE_BYTES_MAX};

/// Lines kept for the error text of a session that did not start.
const TAIL_LINES: usize = 30;
/// Bytes of that text. An error reply holds 4096 with its other words.
const TAIL_BYTES: usize = 3000;

/// Bytes of one read.
const READ_BYTES: usize = 8192;
/// Reads in a row: together twice what a pipe holds.
const READS_AT_ONCE: usize = 16;

/// The reading end of a session's stdout and stderr.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: pipe::Receiver,
    open: bool,
    who: String,
    sink: LogSink,
    partial: Vec<u8>,
    tail: VecDeque<String>,
}

impl Output {
    pub(crate) fn new(pipe: pipe::Receiver, who: String, sink: LogSink) -> Self {
        Self {
            pipe,
            open: true,
            who,
            sink,
            partial: Vec::new(),
            tail: VecDeque::new(),
        }
    }

    /// Forwards for ever; nothing is lost when the future is dropped.
    pub(crate) async fn pump(&mut self) {
        while self.open {
            if self.pipe.readable().await.is_err() {
                self.open = false;
            }
            self.take_available();
            // A session that prints without end does not keep the daemon's other tasks from running (S-2).
            tokio::task::yield_now().await;
        }
        std::future::pending::<()>().await;
    }

    /// Forwards what is left in the pipe, an unfinished last line included, without waiting for more: a grandchild may hold the
    /// other end for ever.
    pub(crate) fn finish(&mut self) {
        self.take_available();
        self.flush_partial();
    }

    /// Forwards the whole lines of what is there now, of a bounded number of bytes: who writes on and on is not followed.
    fn take_available(&mut self) {
        let mut buffer = [0_u8; READ_BYTES];
        for _ in 0..READS_AT_ONCE {
            if !self.open {
                return;
            }
            match self.pipe.try_read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(count) => {
                    let (read, _) = buffer.split_at(count);
                    self.accept(read);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.open = false,
            }
        }
    }

    /// The last lines, bounded.
    pub(crate) fn tail(&mut self) -> String {
        self.finish();
        let mut room = TAIL_BYTES;
        let kept: Vec<&str> = self
            .tail
            .iter()
            .rev()
            .map_while(|line| {
                room = room.checked_sub(line.len() + 1)?;
                Some(line.as_str())
            })
            .collect();
        kept.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn accept(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            // Of an overlong line only the beginning is kept, so it needs no more memory than that.
            let room = LINE_BYTES_MAX.saturating_sub(self.partial.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            self.partial.extend(text.iter().take(room));
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn flush_partial(&mut self) {
        if !self.partial.is_empty() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let line = escaped(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
        self.partial.clear();
        self.sink.forward(&self.who, &line);
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::log;
    use super::*;

    fn output() -> (Output, std::fs::File, log::LogThread) {
        let (sink, thread) = log::start().expect("thread");
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let reader = pipe::Receiver::from_owned_fd(reader).expect("a pipe");
        (
            Output::new(reader, "session 7".to_owned(), sink),
            writer.into(),
            thread,
        )
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_line_that_comes_in_pieces_is_one_line() {
        let (mut output, mut writer, thread) = output();
        for piece in ["Value", "Error: ", "no\nlast"] {
            writer.write_all(piece.as_bytes()).expect("written");
            output.pipe.readable().await.expect("readable");
            output.take_available();
        }
        assert_eq!(output.tail, ["ValueError: no"]);
        assert_eq!(output.tail(), "ValueError: no\nlast");
        thread.finish(&output.sink);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_session_that_prints_without_end_does_not_hold_the_daemon_up() {
        let (mut output, mut writer, thread) = output();
        let printer =
            std::thread::spawn(move || while writer.write_all(&[b'\n'; 1 << 16]).is_ok() {});
        let sink = output.sink.clone();
        let mut turns = 0;
        tokio::select! {
            () = output.pump() => {}
            () = async {
                while turns < 100 {
                    turns += 1;
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        assert_eq!(turns, 100);
        drop(output);
        printer.join().expect("ends when nobody reads");
        thread.finish(&sink);
    }
}
