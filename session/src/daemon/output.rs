//! What a session prints: forwarded line by line, the last lines kept for error texts (R-012).

use std::collections::VecDeque;

use tokio::net::unix::pipe;

use super::log::{escaped, LogSink, LINE_BYTES_MAX};

/// Lines kept for the error text of a session that did not start.
const TAIL_LINES: usize = 30;
/// Bytes of that text. An error reply holds 4096 with its other words.
const TAIL_BYTES: usize = 3000;

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
        }
        std::future::pending::<()>().await;
    }

    /// Forwards what is there now, without waiting for more: a grandchild may hold the other end for ever.
    pub(crate) fn take_available(&mut self) {
        let mut buffer = [0_u8; 8192];
        while self.open {
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
        self.flush_partial();
    }

    /// The last lines, bounded.
    pub(crate) fn tail(&mut self) -> String {
        self.take_available();
        self.flush_partial();
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
