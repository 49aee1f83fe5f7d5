//! What should be true: policies, tunnels, routes. No I/O, no async, no clock, no `unsafe`.

#![forbid(unsafe_code)]

pub mod answer;
pub mod api;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod failover;
pub mod filter;
pub mod permission;
pub mod plan;
pub mod policy;
pub mod rule;
pub mod tunnel;
pub mod wgquick;
