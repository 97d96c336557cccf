//! One request and one reply on a connection to the daemon: a u32 length, then JSON (contract §8).

use std::time::Duration;

use echelon_wire::limits::MAX_JSON_BYTES;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::SessionError;

/// How long a peer may take for the length, and again for the manifest.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a peer may take to accept the reply.
const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// How long a refused peer may go on sending before it is cut off.
const LINGER_LIMIT: Duration = Duration::from_secs(1);
/// Bytes a refused peer may go on sending before it is cut off.
const LINGER_BYTES: u64 = 1 << 20;

/// Requests up to this many bytes need no room in the [`Budget`]: what may be pending of them is bounded by the number of
/// connections, so those who announce large requests and send nothing hold up none of them.
const ORDINARY_BYTES: u32 = 64 << 10;

/// Memory for large requests that are being read, all connections together: in KiB, as a semaphore counts in u32.
#[derive(Debug)]
pub(crate) struct Budget(Semaphore);

impl Budget {
    /// Four of the largest manifests at a time.
    const KIB: usize = 4 * (MAX_JSON_BYTES as usize / 1024);

    pub(crate) fn new() -> Self {
        Self(Semaphore::new(Self::KIB))
    }
}

/// Reads a request: the JSON bytes.
///
/// # Errors
/// [`SessionError::Length`] before anything is allocated, [`SessionError::Slow`], [`SessionError::Io`].
pub(crate) async fn read_request(
    stream: &mut TcpStream,
    budget: &Budget,
) -> Result<Vec<u8>, SessionError> {
    let length = timeout(REQUEST_LIMIT, stream.read_u32_le())
        .await
        .map_err(|_| SessionError::Slow {
            what: "the length of the manifest",
            limit: REQUEST_LIMIT,
        })??;
    if length == 0 || length > MAX_JSON_BYTES {
        return Err(SessionError::Length {
            got: length,
            limit: MAX_JSON_BYTES,
        });
    }
    let body = async {
        let large = length > ORDINARY_BYTES;
        let room = if large { length.div_ceil(1024) } else { 0 };
        // The semaphore is never closed.
        let _room = budget.0.acquire_many(room).await;
        // Grows with what really arrives, so a length alone costs nothing.
        let mut body = Vec::new();
        (&mut *stream)
            .take(u64::from(length))
            .read_to_end(&mut body)
            .await?;
        if body.len() < length as usize {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok(body)
    };
    let body = timeout(REQUEST_LIMIT, body).await;
    Ok(body.map_err(|_| SessionError::Slow {
        what: "the manifest",
        limit: REQUEST_LIMIT,
    })??)
}

/// Writes a framed reply and ends the sending side.
///
/// # Errors
/// When the peer does not take it: it reset the connection, or stopped reading.
pub(crate) async fn write_reply(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    timeout(REPLY_LIMIT, async {
        stream.write_all(frame).await?;
        stream.shutdown().await
    })
    .await
    .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Takes what a refused peer still sends, for a bounded time: closing with unread bytes would reset the connection and could
/// take the reply away from the peer.
pub(crate) async fn linger(mut stream: TcpStream) {
    let rest = async {
        let mut left = LINGER_BYTES;
        let mut buffer = [0_u8; 4096];
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count as u64),
            }
        }
    };
    let _ = timeout(LINGER_LIMIT, rest).await;
}
