//! The binaries' allocator: mimalloc, told to keep its pages for a while.
//!
//! A training step allocates and frees large tensors all the time. Left to itself mimalloc hands pages back to the system within a few
//! steps and gets them back cleared, which costs a twentieth of a small model's step (`benches/peers/README.md`). It is told to wait
//! for a minute, so that memory that a step uses stays, and memory that only loading used goes.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, Ordering};

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`: milliseconds before unused pages go back to the system.
const PURGE_DELAY: mi_option_t = 15;

const MINUTE: std::ffi::c_long = 60_000;

/// mimalloc, with a purge delay of a minute unless `MIMALLOC_PURGE_DELAY` says otherwise.
pub struct KeepsPages {
    set: AtomicBool,
}

#[global_allocator]
static ALLOCATOR: KeepsPages = KeepsPages {
    set: AtomicBool::new(false),
};

impl KeepsPages {
    #[inline]
    fn prepare(&self) {
        if !self.set.load(Ordering::Relaxed) {
            self.set_delay();
        }
    }

    #[cold]
    fn set_delay(&self) {
        // First, so that whatever is allocated meanwhile does not come here again.
        self.set.store(true, Ordering::Relaxed);
        // SAFETY: not to be called by two threads at once. The process's first allocation comes before there is a second thread, since
        // making one allocates. An option that the environment has set stays as it is.
        unsafe { mi_option_set_default(PURGE_DELAY, MINUTE) };
    }
}

// SAFETY: every method is mimalloc's own.
unsafe impl GlobalAlloc for KeepsPages {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.prepare();
        // SAFETY: the caller's.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.prepare();
        // SAFETY: the caller's.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_for_a_minute() {
        let given = std::env::var("MIMALLOC_PURGE_DELAY").ok();
        let expected = given.and_then(|text| text.parse().ok()).unwrap_or(MINUTE);
        // SAFETY: reads one word.
        let found = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(found, expected);
    }
}
