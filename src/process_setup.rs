//! Leaf: what the whole process is told about itself at its start. All of it best effort: a kernel that does not know
//! it is no reason not to run.

use rustix::process::{Resource, Rlimit, setrlimit};

/// The process holds root's password of a fleet: no core file may. A limit can be lowered always.
pub fn no_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// A session has large buffers of which it touches little, and there are thousands: in huge pages they would be
/// resident as a whole.
pub fn no_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
