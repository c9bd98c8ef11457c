//! The whole program on a host like those that people have, attacked from its VMs, from its neighbours and by its users:
//! what lies between the filter, the DHCP server, the kernel and the host (rules B7, B8, C5, C10, H1 to H11 and P4).
//!
//! Written from the rules alone. Nothing here looks at the words of a log or at a name that the rules do not give.
#![cfg(target_os = "linux")]

mod fixture;
mod flows;
mod guard;
mod leases;
mod local;
mod names;
mod reach;
mod service;
mod user;

use std::process::ExitCode;

use lab::harness::{self, Test};

fn main() -> ExitCode {
    if let Some(code) = user::act() {
        return code;
    }
    let tests = lab::tests![
        leases::{b7_two_requests_with_one_xid_share_no_address, b7_a_lost_answer_leaves_no_address_behind},
        leases::{b7_a_shorter_time_that_was_asked_for_holds_without_an_answer},
        leases::{b7_a_late_answer_does_not_bring_an_address_back, b7_an_answer_for_another_address_ends_the_lease},
        leases::{c10_an_expired_lease_is_renewed, c10_a_new_softnet_lets_a_guest_renew},
        leases::{c8_no_foreign_server_is_selected, c9_a_host_name_is_a_name, l6_what_the_link_loses_is_dropped},
        leases::{b8_an_inform_of_a_bound_vm_is_answered, b8_dnsmasq_answers_an_inform_without_option_55},
        leases::{c5_the_fifth_boot_gets_an_address, c5_a_cloned_image_gets_an_address},
        flows::{h3_the_next_holder_inherits_no_connection, h3_the_next_holder_inherits_no_exposed_flow},
        flows::{h4_one_vm_cannot_fill_the_connection_table, h4_the_share_is_a_flag, h4_flows_end_within_hours},
        flows::{h6_a_vm_does_not_take_the_hosts_datagrams, h6_a_vm_does_not_take_another_vms_datagrams},
        flows::{h6_a_vm_does_not_take_connections_from_a_silent_peer, h6_source_ports_are_not_the_vms_choice},
        reach::{h1_block_host_closes_every_address_of_the_host, h1_the_host_is_as_open_as_the_gateway},
        reach::{h1_block_host_holds_behind_bridge_too, h1_block_host_holds_with_passt_too},
        reach::{p4_a_published_port_answers_under_default_deny},
        reach::{h2_no_vm_reaches_anothers_exposed_port, h2_no_umask_hides_the_exposed_ports},
        reach::{h5_forwarding_makes_the_host_no_router, h5_a_host_that_was_a_router_stays_one, h5_no_way_down_leaves_a_router},
        reach::{h7_no_internal_source_leaves_the_uplink},
        service::{h8_a_killed_server_comes_back, h8_a_stopped_server_is_replaced},
        service::{h8_a_server_that_is_killed_again_and_again_comes_back, h8_a_flushed_ruleset_comes_back},
        service::{h8_a_deleted_table_comes_back, h8_a_flushed_address_comes_back, h8_a_bridge_that_is_down_comes_up},
        service::{h8_a_deleted_bridge_comes_back, h8_forwarding_comes_back},
        service::{h8_the_server_survives_its_starters_session, h8_the_server_survives_its_starters_control_group},
        service::{h8_the_server_has_nothing_of_its_starters_surroundings},
        service::{h4_one_vms_questions_do_not_stop_anothers, h4_one_vms_dns_connections_do_not_stop_anothers},
        local::{h9_a_users_lock_stops_nobody, h9_a_users_lock_keeps_no_dead_vm_alive},
        local::{h9_a_wait_for_a_lock_ends_and_names_the_holder},
        local::{h9_a_user_takes_no_lease_away, h9_a_user_takes_no_lease_away_behind_bridge, h9_a_user_takes_no_address},
        local::{h9_who_looks_like_the_server_is_not_taken_for_it},
        local::{h9_a_set_user_id_start_that_is_stopped_stops_nobody},
        local::{h9_a_set_user_id_start_gives_the_server_nothing_of_its_callers},
        local::{h9_a_set_user_id_start_changes_no_network_of_others},
        guard::{h10_a_taken_over_worker_sends_from_no_other_mac, h10_a_taken_over_worker_claims_no_other_address},
        guard::{h10_a_taken_over_worker_sends_from_no_other_address},
        guard::{h10_a_taken_over_worker_gives_no_other_lease_back},
        guard::{h10_a_claim_that_the_server_knows_nothing_of_ends_no_other_vm},
        guard::{h10_what_was_checked_for_the_dead_is_not_checked_for_the_next, h10_what_was_checked_on_a_bridge_is_not_checked_for_the_next},
        guard::{h10_no_worker_sees_the_hosts_sockets, h10_every_process_of_softnet_is_confined},
        reach::{h11_the_resolver_answers_no_neighbour, h11_the_resolver_tells_nothing_of_itself},
    ];
    harness::main(tests.into_iter().map(Test::as_root).collect())
}
