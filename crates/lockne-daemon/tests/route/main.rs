//! Rules, routes and interfaces, in the real kernel, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod change;
mod interface;
mod lookup;
mod netns;
mod shown;
mod state;

use libtest_mimic::{Arguments, Trial};

/// A test and its name, which is its claim.
macro_rules! trials {
    ($($module:ident::$test:ident,)*) => {
        vec![$((
            concat!(stringify!($module), "::", stringify!($test)),
            (|| netns::run(Box::new(|| Box::pin($module::$test())))) as fn(),
        )),*]
    };
}

fn main() {
    let arguments = Arguments::from_args();
    let tests: Vec<(&str, fn())> = trials![
        state::applied_plan_is_what_ip_shows,
        state::steps_in_words_are_what_ip_takes,
        state::satisfied_plan_needs_no_second_apply,
        state::steps_can_be_applied_twice,
        state::what_others_made_is_left_alone,
        state::route_of_others_in_our_table_gives_way,
        state::remove_all_leaves_nothing,
        state::marks_of_others_are_named,
        state::sysctls_get_their_values_back,
        state::sysctls_that_are_no_longer_needed_get_their_values_back,
        state::step_that_fails_is_named_and_stops_no_other,
        state::interface_that_goes_in_between_stops_nothing,
        state::ipv6_is_refused_also_where_it_is_off,
        state::unprivileged_user_is_told_which_capability,
        change::watch_tells_what_changed,
        change::watch_that_was_not_read_tells_of_an_overflow,
        change::route_comes_back_with_its_interface,
        change::recreated_interface_gets_the_route,
        change::flushed_rules_are_put_back,
        change::gateway_of_others_is_followed,
        lookup::marked_socket_uses_the_tunnel,
        lookup::marked_socket_is_refused_when_the_tunnel_is_gone,
        lookup::marked_socket_is_refused_what_the_tunnel_does_not_reach,
        lookup::ipv6_socket_bound_to_the_uplink_is_refused,
        lookup::local_prefix_goes_past_the_tunnel,
        lookup::forwarded_packet_is_not_routed_by_its_mark,
        interface::changes_can_be_made_twice,
        interface::name_with_a_dot_is_no_path,
        interface::missing_interface_is_named,
        interface::address_is_refused_with_a_hint_where_ipv6_is_off,
    ];
    let missing = netns::missing();
    if let Some(missing) = missing {
        eprintln!("ignored, as {missing}");
    }
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(missing.is_some())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
