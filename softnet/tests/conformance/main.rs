//! The rules, one test a rule, written from the specification alone and run against the program as Tart starts it; and
//! the program under load, at its start and at its end.
//!
//! Each test has namespaces of its own with a bridge and a TAP. It plays the VM on the datagram socket, and the DHCP
//! server and everybody else on the bridge. "Dropped" is never "not seen for a while": a frame that must pass follows
//! the one that must not, in order, and only when it has come out is the first one known to be gone.

mod answers;
mod arp;
mod binding;
mod control;
mod destinations;
mod dhcp;
mod flows;
mod inbound;
mod layer2;
mod lifecycle;
mod load;
mod policy;
mod resources;
mod source;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::harness::main(lab::tests![
        layer2::{
            l1_source_mac_is_own,
            l2_only_ipv4_and_arp,
            l3_sizes,
            l3_a_packet_too_long_for_the_link_is_answered,
            l3_a_guest_learns_the_links_mtu,
            l4_no_bytes_behind_the_packet,
            l5_destination_mac_fits_the_packet,
        },
        arp::{
            a1_only_ipv4_over_ethernet,
            a2_sender_mac_is_own,
            a3_sender_address_is_leased,
            a4_no_lease_no_arp,
            a5_no_scanning,
        },
        source::{
            s1_source_is_leased,
            s1_nothing_before_the_lease,
            s1_nothing_after_release,
            s1_nothing_after_decline,
            s1_nothing_after_nak,
            s1_nothing_after_expiry,
            s2_header_is_right,
            s3_no_options,
            s3_reports_of_groups_may_alert_routers,
            s4_fragments,
            s5_transport_headers_are_whole,
        },
        destinations::{
            d1_never,
            d2_longest_prefix,
            d2_the_alias_and_the_same_prefix,
            d3_exact_boundaries,
            d4_gateway_protocols,
            d5_resolvers,
            d6_icmp,
            d7_renewal_survives_block_all,
            d8_allow_all_keeps_the_guards,
            d9_host_network,
        },
        policy::{
            p1_every_form_is_taken,
            p2_ports_then_prefix_then_range_then_block,
        },
        flows::{
            p3_directions,
            p4_incoming,
            p5_default_deny,
            f1_what_begins_a_flow,
            f2_a_flow_passes_both_ways,
            f4_half_open_flows_are_bounded,
            f5_fragments,
            f6_a_forbidden_flow_ends,
        },
        answers::{
            j1_refusals_are_answered,
            j2_answers_go_to_the_vm_alone,
            j3_answers_are_bounded_and_counted_apart,
        },
        dhcp::{
            c1_ports_and_destination,
            c1_wrong_checksums_are_counted_and_open_ones_completed,
            c2_message_is_well_formed,
            c3_client_types_only,
            c4_source_and_ciaddr,
            c5_options,
            c6_release_and_decline,
            c5_the_earlier_lease_is_given_back,
            c7_rate,
            c8_no_other_server,
            c9_names,
            c10_the_last_lease_is_renewed,
        },
        binding::{
            b1_only_a_matching_ack_binds,
            b2_address_is_in_the_subnet,
            b3_ignored_acks,
            b4_infinity,
            b5_replace_and_nak,
            b6_rogue_servers_do_not_reach_the_vm,
            b6_a_boot_server_answers,
            b7_no_more_than_the_server_gives,
            b7_the_servers_word_counts_unasked,
            b7_an_asked_time_caps_the_lease,
            b8_an_inform_is_answered,
            b9_a_given_address_needs_no_dhcp_and_has_no_end,
        },
        inbound::{
            i1_what_is_for_the_vm_passes,
            i2_what_is_not_does_not,
            i3_nobody_else_is_the_gateway,
            i4_garbage_harms_nothing,
        },
        control::{
            p6_a_policy_is_replaced_while_the_vm_runs,
            k3_a_refused_policy_changes_nothing,
            k1_the_channel_is_strict_json_rpc,
            k1_a_channel_is_a_connected_unix_stream,
            k1_a_vm_is_reached_by_its_name,
            k1_other_users_cannot_reach_a_vm,
            k2_no_controller_holds_frames_up,
        },
        resources::{
            r1_memory_and_log_are_flat,
            r2_no_direction_starves,
            r3_bad_frames_do_not_end_it,
            r3_a_dead_tap_ends_it,
            r3_a_closed_vm_ends_it,
            r4_a_bad_mac_is_refused,
        },
        load::{
            a_lease_expires_under_a_flood,
            a_signal_ends_it_under_a_flood,
            a_port_forward_follows_the_lease_under_a_flood,
            a_vm_that_does_not_read_harms_nobody,
            l6_losses_are_drops,
            a_limit_holds_the_vm_back,
            a_limit_holds_the_host_back,
        },
        lifecycle::{
            int_and_term_end_it_and_give_the_lease_back,
            an_empty_datagram_ends_it,
            a_dead_parent_ends_it,
            a_stream_socket_carries_frames_behind_their_length,
            a_broken_stream_ends_it,
            a_frame_before_it_is_ready_is_not_lost,
            ready_means_that_frames_flow,
            the_state_of_a_link_tells_whether_it_carries,
            a_routed_tap_serves_without_a_bridge,
            run_ends_as_its_command_does,
            run_passes_signals_on_and_ends_both,
            run_outlives_a_socket_that_the_vm_closes,
            run_says_that_the_vm_has_sent_nothing,
            run_gives_a_vm_the_same_mac_at_each_boot,
            nothing_goes_to_standard_output,
        },
    ])
}
