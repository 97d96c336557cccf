//! One session after another at one place: what belongs to which.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use echelon_runtime::testing::fake::ControlVerdict;
use echelon_runtime::testing::reopen_over;
use echelon_wire::buffer::AccessFlags;

use crate::bed::{bounded, frees, start, Bed};

/// a buffer belongs to the session that made it, whichever was there when its maker looked.
#[test]
fn r_114_a_buffer_belongs_to_the_session_that_made_it() {
    const SESSIONS: u32 = 600;
    let bed = Bed::new(0, 2);
    let w = bed.worker.clone();
    let owner = bed.malloc(1, 8);
    let export = w.remote_export(&owner, 0, None, AccessFlags::READ).unwrap();
    let (stop, no_loss) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(())));
    let (told, gate) = (Arc::clone(&stop), Arc::clone(&no_loss));
    // Without a pause makes what it can get and gives it back: so a session that is lost holds nothing.
    let making = start(move || {
        let mut made = 0_u32;
        while !told.load(Ordering::SeqCst) {
            let _no_loss = gate.read().unwrap();
            if let Ok(buffer) = w.remote_malloc(0, 8) {
                w.remote_free(&buffer).unwrap();
                made += 1;
            }
            if let Ok(import) = w.remote_import(&export, 0, None) {
                w.remote_release_import(&import).unwrap();
            }
        }
        made
    });
    let mut session = bed.remotes[0].clone();
    for later in 1..=SESSIONS {
        let quiet = no_loss.write().unwrap();
        assert_eq!(session.live_buffers(), 0, "session {later} keeps a buffer");
        session.lose("ended");
        drop(quiet);
        bed.worker.run_simple(|_| Ok(())).unwrap();
        let (endpoint, handle) = bed.world.remote_again(0, 1, later);
        reopen_over(&bed.worker, 0, endpoint).unwrap();
        let seen = handle.clone();
        bounded("the next buffer", move || {
            while frees(&seen.controls()) == 0 {
                std::thread::yield_now();
            }
        });
        session = handle;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(making.join("what makes buffers") > 0);
    assert_eq!(session.live_buffers(), 0);
    bed.worker.remote_free(&owner).unwrap();
    assert_eq!(
        bed.remotes[1].live_buffers(),
        0,
        "no import holds the owner"
    );
}

/// The answer came, its caller was interrupted before it looked, and a fresh session took the place: the buffer went with the old one,
/// and its number is another buffer's now.
#[test]
fn r_114_what_an_ended_session_made_is_not_undone_in_the_next() {
    let bed = Bed::new(0, 1);
    let old = bed.remotes[0].clone();
    old.on_control(|_| ControlVerdict::Hold);
    let w = bed.worker.clone();
    let (endpoint, fresh) = bed.world.remote_again(0, 1, 1);
    let waiting = old.clone();
    bed.interrupt.before(move || {
        waiting.wait_for("the alloc", |_, controls| controls.len() == 1);
        waiting.carry_controls();
        assert!(waiting.answer_held());
        w.run_simple(|_| Ok(())).unwrap();
        waiting.lose("ended");
        w.run_simple(|_| Ok(())).unwrap();
        reopen_over(&w, 0, endpoint).unwrap();
        std::mem::forget(w.remote_malloc(0, 8).unwrap());
    });
    let w = bed.worker.clone();
    let made = start(move || w.remote_malloc(0, 8).map(drop)).join("malloc");
    assert!(made.is_err(), "{made:?}");
    bed.worker.run_simple(|_| Ok(())).unwrap();
    assert_eq!(frees(&fresh.controls()), 0);
    assert_eq!(fresh.live_buffers(), 1, "that of somebody else");
}
