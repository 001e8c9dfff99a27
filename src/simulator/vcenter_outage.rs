//! Times in which a fake vCenter does not work.

use super::vcenter::VcenterHandle;
use super::vcenter_spec::VcenterFault;

impl VcenterHandle {
    /// Goes down, as for a restart: connections are cut and new ones refused, and sessions are lost. Whoever still
    /// holds one is told `ManagedObjectNotFound` when it is up again.
    pub fn go_down(&self) {
        self.shared.is_down.send_replace(true);
        self.restart();
    }

    /// Comes up again, at the same address.
    pub fn come_up(&self) {
        self.shared.is_down.send_replace(false);
    }

    /// Lets every call fail that begins from now on; `None`: no longer. Those for which another fault was asked fail by
    /// that. A call that hangs does so until its client gives up.
    pub fn fail_every_call(&self, fault: Option<VcenterFault>) {
        self.shared.lock().standing_fault = fault;
    }
}
