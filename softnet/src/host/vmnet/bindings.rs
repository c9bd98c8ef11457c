//! Bindings of the parts of Apple's vmnet framework that Softnet uses, and of the XPC dictionaries in which it takes
//! settings and reports parameters. Declared as in `vmnet.h` and `xpc.h`.
//!
//! Whatever is declared here is bound when the program is loaded, and the loader refuses the program on a system
//! that lacks any of it. So only what macOS 13 has is declared; newer keys are looked up at run time.
//!
//! `unsafe`, because all of these are C interfaces. Blocks and dispatch queues come from `block2` and `dispatch2`.
#![expect(unsafe_code, reason = "vmnet and XPC are C interfaces")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::{offset_of, size_of};
use std::net::Ipv4Addr;
use std::ptr;
use std::sync::mpsc;
use std::time::Duration;

use block2::{Block, RcBlock};
use dispatch2::{DispatchQueue, DispatchQueueGlobalPriority, DispatchRetained, GlobalQueueIdentifier};

use super::RawParameters;
use super::status::{Failure, Status};
use crate::link::BATCH_FRAMES;

/// `xpc_object_t`.
type XpcObject = *mut c_void;
/// `interface_ref`.
type InterfaceRef = *mut c_void;
/// `vmnet_interface_completion_handler_t`.
type Completion = Block<dyn Fn(u32)>;

/// `VMNET_HOST_MODE` and `VMNET_SHARED_MODE` of `operating_modes_t`.
const HOST_MODE: u64 = 1000;
const SHARED_MODE: u64 = 1001;
/// `VMNET_INTERFACE_PACKETS_AVAILABLE` of `interface_event_t`.
const PACKETS_AVAILABLE: u32 = 1;

/// How long the framework may take to complete a call; it takes milliseconds.
const COMPLETION_LIMIT: Duration = Duration::from_secs(30);

/// `struct vmpktdesc`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PacketDescriptor {
    size: libc::size_t,
    vectors: *mut libc::iovec,
    vector_count: u32,
    flags: u32,
}

const _: () = {
    assert!(size_of::<PacketDescriptor>() == 24);
    assert!(offset_of!(PacketDescriptor, size) == 0);
    assert!(offset_of!(PacketDescriptor, vectors) == 8);
    assert!(offset_of!(PacketDescriptor, vector_count) == 16);
    assert!(offset_of!(PacketDescriptor, flags) == 20);
};

// SAFETY: as declared in `vmnet.h` of macOS 13. The keys are constant pointers to constant strings.
#[link(name = "vmnet", kind = "framework")]
unsafe extern "C" {
    fn vmnet_start_interface(
        description: XpcObject,
        queue: &DispatchQueue,
        handler: &Block<dyn Fn(u32, XpcObject)>,
    ) -> InterfaceRef;
    fn vmnet_stop_interface(interface: InterfaceRef, queue: &DispatchQueue, handler: &Completion) -> u32;
    fn vmnet_interface_set_event_callback(
        interface: InterfaceRef,
        events: u32,
        queue: Option<&DispatchQueue>,
        callback: Option<&Block<dyn Fn(u32, XpcObject)>>,
    ) -> u32;
    fn vmnet_read(interface: InterfaceRef, packets: *mut PacketDescriptor, count: *mut c_int) -> u32;
    fn vmnet_write(interface: InterfaceRef, packets: *mut PacketDescriptor, count: *mut c_int) -> u32;
    fn vmnet_interface_add_ip_port_forwarding_rule(
        interface: InterfaceRef,
        protocol: u8,
        external_port: u16,
        address_family: u8,
        internal_address: *const c_void,
        internal_port: u16,
        handler: &Completion,
    ) -> u32;
    fn vmnet_interface_remove_ip_port_forwarding_rule(
        interface: InterfaceRef,
        protocol: u8,
        external_port: u16,
        address_family: u8,
        handler: &Completion,
    ) -> u32;

    static vmnet_operation_mode_key: *const c_char;
    static vmnet_enable_isolation_key: *const c_char;
    static vmnet_start_address_key: *const c_char;
    static vmnet_subnet_mask_key: *const c_char;
    static vmnet_mtu_key: *const c_char;
    static vmnet_max_packet_size_key: *const c_char;
}

// SAFETY: as declared in `xpc/xpc.h` of macOS 13; part of libSystem.
unsafe extern "C" {
    fn xpc_dictionary_create_empty() -> XpcObject;
    fn xpc_dictionary_set_uint64(dictionary: XpcObject, key: *const c_char, value: u64);
    fn xpc_dictionary_set_bool(dictionary: XpcObject, key: *const c_char, value: bool);
    fn xpc_dictionary_get_uint64(dictionary: XpcObject, key: *const c_char) -> u64;
    fn xpc_dictionary_get_string(dictionary: XpcObject, key: *const c_char) -> *const c_char;
    fn xpc_release(object: XpcObject);
}

/// Which network an interface is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With NAT.
    Shared,
    /// With the host only.
    Host,
}

/// A started interface; stopped when dropped.
pub struct Session {
    handle: InterfaceRef,
    /// Completion handlers run here, so that an event callback that waits delays none.
    completions: DispatchRetained<DispatchQueue>,
    /// Event callbacks run here, one at a time.
    events: DispatchRetained<DispatchQueue>,
    packets: Packets,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    /// Starts an interface, and returns it with the parameters that the framework reports.
    ///
    /// # Errors
    /// If the framework refuses, or does not answer in time.
    pub fn start(mode: Mode, isolated: bool) -> Result<(Self, RawParameters), Failure> {
        let completions = DispatchQueue::global_queue(GlobalQueueIdentifier::Priority(
            DispatchQueueGlobalPriority::Default,
        ));
        let events = DispatchQueue::new("softnet.vmnet.events", None);
        let settings = Settings::new(mode, isolated);
        let (sender, receiver) = mpsc::sync_channel(1);
        let handler = RcBlock::new(move |status: u32, parameters: XpcObject| {
            let _ = sender.try_send((Status(status), raw_parameters(parameters)));
        });
        // SAFETY: settings, queue and block live through the call, which retains what it keeps. The block owns what it
        // uses, which may be sent to the queue's thread.
        let handle = unsafe { vmnet_start_interface(settings.0, &completions, &handler) };
        if handle.is_null() {
            return Err(Failure::NoInterface);
        }
        // From here on dropped, and so stopped, also if the start failed.
        let session = Session { handle, completions, events, packets: Packets::new() };
        let answer = receiver.recv_timeout(COMPLETION_LIMIT);
        let (status, parameters) = answer.map_err(|_| Failure::NoAnswer(COMPLETION_LIMIT.as_secs()))?;
        status.check()?;
        Ok((session, parameters))
    }

    /// Has `callback` called on a thread of the framework when frames have arrived, one call at a time. It must not
    /// panic.
    ///
    /// # Errors
    /// If the framework refuses.
    pub fn set_event_callback(&mut self, callback: impl Fn() + Send + 'static) -> Result<(), Failure> {
        let block = RcBlock::new(move |_events: u32, _event: XpcObject| callback());
        // SAFETY: the interface is started; queue and block live through the call, which retains both. The block owns
        // what it uses, which may be sent to the queue's thread, and the queue is serial.
        let status = unsafe {
            vmnet_interface_set_event_callback(
                self.handle,
                PACKETS_AVAILABLE,
                Some(&self.events),
                Some(&block),
            )
        };
        Status(status).check()
    }

    /// No call of the callback begins after this. One that runs goes on.
    ///
    /// # Errors
    /// If the framework refuses.
    fn clear_event_callback(&mut self) -> Result<(), Failure> {
        // SAFETY: the interface is started; no queue and no block disable the callback.
        let status =
            unsafe { vmnet_interface_set_event_callback(self.handle, PACKETS_AVAILABLE, None, None) };
        Status(status).check()
    }

    /// Fills `buffers` from the front with frames that have arrived, writes their lengths to `lengths`, and returns
    /// their number. At most [`BATCH_FRAMES`].
    ///
    /// # Errors
    /// If the framework refuses.
    pub fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Failure> {
        let offered = buffers.iter_mut().zip(lengths.iter());
        let mut count = self.packets.describe(offered.map(|(buffer, _)| (buffer.as_mut_ptr(), buffer.len())));
        // SAFETY: the interface is started; the first `count` descriptors each point to one iovec, which points to a
        // distinct buffer that is mutably borrowed through this call.
        let status = unsafe { vmnet_read(self.handle, self.packets.descriptors.as_mut_ptr(), &mut count) };
        Status(status).check()?;
        let count = usize::try_from(count).unwrap_or(0);
        for (length, descriptor) in lengths.iter_mut().zip(self.packets.descriptors.iter()).take(count) {
            *length = descriptor.size;
        }
        Ok(count.min(lengths.len()))
    }

    /// Writes `frames` from the front and returns how many were taken. At most [`BATCH_FRAMES`].
    ///
    /// # Errors
    /// If the framework refuses; none was taken then.
    pub fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Failure> {
        let offered = frames.iter().map(|frame| (frame.as_ptr().cast_mut(), frame.len()));
        let mut count = self.packets.describe(offered);
        // SAFETY: as for reading; the framework only reads the frames, which are borrowed through this call.
        let status = unsafe { vmnet_write(self.handle, self.packets.descriptors.as_mut_ptr(), &mut count) };
        Status(status).check()?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Forwards the host's port `external` of `protocol`, an `IPPROTO_` number, to `port` of `to`.
    ///
    /// # Errors
    /// If the framework refuses, or does not answer in time.
    pub fn add_forward(
        &mut self,
        protocol: u8,
        external: u16,
        to: Ipv4Addr,
        port: u16,
    ) -> Result<(), Failure> {
        let address = to.octets();
        // SAFETY: the interface is started; the address has the four bytes of an `in_addr` in network order, and lives
        // through the call like the block; ports are in host byte order.
        self.complete(|handle, handler| unsafe {
            vmnet_interface_add_ip_port_forwarding_rule(
                handle,
                protocol,
                external,
                IPV4,
                address.as_ptr().cast(),
                port,
                handler,
            )
        })
    }

    /// Removes the forward of `external`.
    ///
    /// # Errors
    /// If the framework refuses, or does not answer in time.
    pub fn remove_forward(&mut self, protocol: u8, external: u16) -> Result<(), Failure> {
        // SAFETY: the interface is started, and the block lives through the call.
        self.complete(|handle, handler| unsafe {
            vmnet_interface_remove_ip_port_forwarding_rule(handle, protocol, external, IPV4, handler)
        })
    }

    /// Waits until what `request` asks for has been completed.
    fn complete(&self, request: impl FnOnce(InterfaceRef, &Completion) -> u32) -> Result<(), Failure> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let handler = RcBlock::new(move |status: u32| {
            let _ = sender.try_send(Status(status));
        });
        Status(request(self.handle, &handler)).check()?;
        let answer = receiver.recv_timeout(COMPLETION_LIMIT);
        answer.map_err(|_| Failure::NoAnswer(COMPLETION_LIMIT.as_secs()))?.check()
    }
}

/// `AF_INET`, in the width of the parameter.
const IPV4: u8 = libc::AF_INET as u8;

impl Drop for Session {
    /// Clears the callback first, so that none begins while the interface stops.
    fn drop(&mut self) {
        let cleared = self.clear_event_callback();
        // SAFETY: the interface was started, and nothing uses it after this; queue and block live through the call.
        let stopped = self
            .complete(|handle, handler| unsafe { vmnet_stop_interface(handle, &self.completions, handler) });
        if let Err(error) = cleared.and(stopped) {
            tracing::warn!(%error, "vmnet did not stop the interface cleanly");
        }
    }
}

/// Descriptors for one call, allocated once.
struct Packets {
    descriptors: Box<[PacketDescriptor; BATCH_FRAMES]>,
    vectors: Box<[libc::iovec; BATCH_FRAMES]>,
}

impl Packets {
    fn new() -> Self {
        let descriptor = PacketDescriptor { size: 0, vectors: ptr::null_mut(), vector_count: 0, flags: 0 };
        let vector = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Packets {
            descriptors: Box::new([descriptor; BATCH_FRAMES]),
            vectors: Box::new([vector; BATCH_FRAMES]),
        }
    }

    /// Fills the descriptors from the front, one for each buffer, and returns how many it filled.
    fn describe(&mut self, buffers: impl Iterator<Item = (*mut u8, usize)>) -> c_int {
        let mut count = 0;
        let slots = self.descriptors.iter_mut().zip(self.vectors.iter_mut());
        for ((descriptor, vector), (start, len)) in slots.zip(buffers) {
            *vector = libc::iovec { iov_base: start.cast(), iov_len: len };
            *descriptor = PacketDescriptor { size: len, vectors: vector, vector_count: 1, flags: 0 };
            count += 1;
        }
        count
    }
}

/// The dictionary that describes an interface to start.
struct Settings(XpcObject);

impl Settings {
    fn new(mode: Mode, isolated: bool) -> Self {
        let mode = match mode {
            Mode::Shared => SHARED_MODE,
            Mode::Host => HOST_MODE,
        };
        // SAFETY: the keys are constants of the framework, and the dictionary is ours until it is released.
        unsafe {
            let settings = Settings(xpc_dictionary_create_empty());
            xpc_dictionary_set_uint64(settings.0, vmnet_operation_mode_key, mode);
            xpc_dictionary_set_bool(settings.0, vmnet_enable_isolation_key, isolated);
            settings
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: the one reference that this owns.
        unsafe { xpc_release(self.0) }
    }
}

/// Reads the parameters of a started interface. `dictionary` may be null if the start failed.
fn raw_parameters(dictionary: XpcObject) -> RawParameters {
    if dictionary.is_null() {
        return RawParameters::default();
    }
    // SAFETY: the framework's dictionary and its keys live through these calls, and a string as long as the dictionary.
    unsafe {
        let text = |key| {
            let value = xpc_dictionary_get_string(dictionary, key);
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        };
        // 0 stands for a missing number, too; none of these is ever 0.
        let number = |key| Some(xpc_dictionary_get_uint64(dictionary, key)).filter(|&value| value != 0);
        RawParameters {
            start_address: text(vmnet_start_address_key),
            subnet_mask: text(vmnet_subnet_mask_key),
            mtu: number(vmnet_mtu_key),
            max_packet_size: number(vmnet_max_packet_size_key),
            read_max_packets: newer_key(c"vmnet_read_max_packets_key").and_then(number),
            write_max_packets: newer_key(c"vmnet_write_max_packets_key").and_then(number),
        }
    }
}

/// The key in the variable `name` of the framework, if this macOS has it. Both that are looked up came with macOS 15.
fn newer_key(name: &CStr) -> Option<*const c_char> {
    // SAFETY: the name ends with a NUL. The framework is loaded, so a variable of this name is its constant, of the
    // type that `vmnet.h` gives to every key.
    let key = unsafe {
        let variable = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<*const c_char>();
        variable.as_ref().copied()?
    };
    (!key.is_null()).then_some(key)
}
