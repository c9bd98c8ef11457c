//! Proves what `softnet::sandbox` and `softnet::privilege` promise, on the running program and on processes that seal
//! themselves and then try what they may not.

mod calls;
mod hosts;
mod monitor;
mod set_user_id;
mod worker;

use std::process::ExitCode;

use lab::harness;

fn main() -> ExitCode {
    let mut tests = lab::tests![
        worker::{it_holds_nothing_but_what_it_needs, it_works_and_ends_cleanly, it_does_without_a_reader_of_its_log},
        worker::{an_error_is_told_whatever_backtraces_are_asked_for},
        calls::{every_other_call_ends_the_process, the_allowed_calls_work, a_panic_is_told},
        calls::{the_seal_refuses_a_second_thread, landlock_leaves_nothing_to_name},
        hosts::{an_ordinary_user_is_confined_as_well, a_user_who_may_map_nothing_is_confined_by_the_rest, privilege_and_frames_are_apart},
        hosts::{a_kernel_that_lacks_something_is_told_apart},
        monitor::{it_is_confined_and_watches_for_the_worker, without_a_place_every_other_call_ends_it},
        monitor::{with_a_place_it_runs_nft_and_little_else, either_ones_death_is_the_others_end},
        set_user_id::{it_becomes_its_caller, it_takes_only_what_the_list_allows, it_starts_nobody_elses_programs},
        set_user_id::{the_vm_of_run_is_the_callers, the_vm_of_roots_run_is_the_named_users, the_vm_of_sudo_is_its_callers},
    ];
    for test in &mut tests {
        *test = test.as_root();
    }
    harness::main(tests)
}
