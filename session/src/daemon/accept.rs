//! The accept loop: concurrent connections, bounded in number, none of which can hold up another.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Connections whose request is still being read. When there are more, the oldest is cut off: a newcomer is always read.
pub(crate) const PENDING_MAX: usize = 256;
/// Waits after accept failed for want of descriptors or memory.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// The connections whose request is still being read, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    next: u64,
    reading: VecDeque<(u64, AbortHandle)>,
}

/// Ends a connection's place among those being read, at the latest when it is dropped.
#[derive(Debug)]
pub(crate) struct Reading {
    number: u64,
    pending: Arc<Mutex<Pending>>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.pending
            .lock()
            .reading
            .retain(|(number, _)| *number != self.number);
    }
}

/// Accepts until the future is dropped; each connection is served by a task of its own in `tasks`.
pub(crate) async fn accept_loop<F, S>(listener: &TcpListener, serve: F)
where
    F: Fn(TcpStream, SocketAddr, Reading) -> S,
    S: std::future::Future<Output = ()> + 'static,
{
    let pending = Arc::new(Mutex::new(Pending::default()));
    let mut tasks = JoinSet::new();
    let mut back_off = BACK_OFF_MIN;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    back_off = BACK_OFF_MIN;
                    admit(&pending, &mut tasks, |reading| serve(stream, peer, reading));
                }
                Err(error) => {
                    if is_exhaustion(&error) {
                        tracing::warn!(%error, wait = ?back_off, "cannot accept connections for now");
                        tokio::time::sleep(back_off).await;
                        back_off = (back_off * 2).min(BACK_OFF_MAX);
                    } else {
                        // The peer was gone before we took its connection; the next one is not affected.
                        tracing::debug!(%error, "a connection ended before it was accepted");
                    }
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn admit<S>(
    pending: &Arc<Mutex<Pending>>,
    tasks: &mut JoinSet<()>,
    serve: impl FnOnce(Reading) -> S,
) where
    S: std::future::Future<Output = ()> + 'static,
{
    let (number, oldest) = {
        let mut table = pending.lock();
        table.next += 1;
        let full = table.reading.len() >= PENDING_MAX;
        (
            table.next,
            if full {
                table.reading.pop_front()
            } else {
                None
            },
        )
    };
    if let Some((_, connection)) = oldest {
        tracing::warn!(
            limit = PENDING_MAX,
            "too many connections without a request; the oldest is cut off"
        );
        connection.abort();
    }
    let task = tasks.spawn_local(serve(Reading {
        number,
        pending: Arc::clone(pending),
    }));
    // The task has not run yet: it shares this thread. So its place is taken before it can be given up.
    pending.lock().reading.push_back((number, task));
}

/// Out of descriptors or memory: trying again at once would spin.
fn is_exhaustion(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    use rustix::io::Errno;
    matches!(
        code,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    ) || error.kind() == ErrorKind::OutOfMemory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_is_not_a_lost_peer_r_049() {
        let error =
            |errno: rustix::io::Errno| std::io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_exhaustion(&error(rustix::io::Errno::MFILE)));
        assert!(is_exhaustion(&error(rustix::io::Errno::NFILE)));
        assert!(!is_exhaustion(&error(rustix::io::Errno::CONNABORTED)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_oldest_silent_connection_gives_way_r_206() {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let mut tasks = JoinSet::new();
                for _ in 0..PENDING_MAX + 3 {
                    admit(&pending, &mut tasks, |reading| async move {
                        let _held = reading;
                        std::future::pending::<()>().await;
                    });
                }
                for _ in 0..3 {
                    let ended = tasks.join_next().await.expect("three were cut off");
                    assert!(ended.expect_err("aborted").is_cancelled());
                }
                assert_eq!(pending.lock().reading.len(), PENDING_MAX);
            })
            .await;
    }
}
