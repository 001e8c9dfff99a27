//! OTLP's protobuf, as far as points need it, written straight into a buffer: messages of the generated
//! types would copy each text of each point first, and cost more than everything else of an export.
//!
//! The numbers are those of `opentelemetry/proto/metrics/v1/metrics.proto` and `common/v1/common.proto`.
//! Fields stand in the order of their numbers and defaults are left out, so that the bytes are the same
//! that the generated types give: the tests compare them.

use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, DataPointFlags};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Field numbers of `NumberDataPoint`.
mod point {
    pub(super) const START: u32 = 2;
    pub(super) const TIME: u32 = 3;
    pub(super) const AS_DOUBLE: u32 = 4;
    pub(super) const ATTRIBUTES: u32 = 7;
    pub(super) const FLAGS: u32 = 8;
}

/// Length of a field with this much content. All field numbers here are below 16: one byte.
pub(super) fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

/// What stands before the content of a string, bytes or message field.
pub(super) fn head(to: &mut Vec<u8>, field: u32, content: usize) {
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(content as u64, to);
}

/// A string field; the empty one is the default.
pub(super) fn text(to: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        head(to, field, text.len());
        to.extend_from_slice(text.as_bytes());
    }
}

fn varint(to: &mut Vec<u8>, field: u32, value: u64) {
    encode_key(field, WireType::Varint, to);
    encode_varint(value, to);
}

fn fixed64(to: &mut Vec<u8>, field: u32, bytes: [u8; 8]) {
    encode_key(field, WireType::SixtyFourBit, to);
    to.extend_from_slice(&bytes);
}

/// `NumberDataPoint.attributes`, a pair of texts.
pub(super) fn text_attribute(to: &mut Vec<u8>, key: &str, value: &str) {
    // In an AnyValue the empty string is written: it says which kind of value it is.
    let any = field_len(value.len());
    attribute_head(to, key, any);
    head(to, 1, value.len());
    to.extend_from_slice(value.as_bytes());
}

/// `NumberDataPoint.attributes`, any other value.
pub(super) fn attribute(to: &mut Vec<u8>, key: &str, value: &AnyValue) {
    attribute_head(to, key, value.encoded_len());
    value.encode_raw(to);
}

fn attribute_head(to: &mut Vec<u8>, key: &str, any: usize) {
    let key_len = if key.is_empty() { 0 } else { field_len(key.len()) };
    head(to, point::ATTRIBUTES, key_len + field_len(any));
    text(to, 1, key);
    head(to, 2, any);
}

/// A `NumberDataPoint` but for its attributes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Nanoseconds of unix time; 0: none.
    pub start: u64,
    /// Nanoseconds of unix time.
    pub time: u64,
    /// `None`: no recorded value, by its flag.
    pub value: Option<f64>,
}

impl Point {
    /// Longest that a point can be beside its attributes, its head as a field included.
    pub(super) const LARGEST: usize = 11 + 9 + 9 + 9;

    /// Writes it as field 1, `data_points`, with attributes that are encoded already.
    pub(super) fn write(self, to: &mut Vec<u8>, attributes: &[u8]) {
        let Self { start, time, value } = self;
        let start_len = if start == 0 { 0 } else { 9 };
        let time_len = if time == 0 { 0 } else { 9 };
        let value_len = if value.is_some() { 9 } else { 2 };
        head(to, 1, start_len + time_len + value_len + attributes.len());
        if start != 0 {
            fixed64(to, point::START, start.to_le_bytes());
        }
        if time != 0 {
            fixed64(to, point::TIME, time.to_le_bytes());
        }
        if let Some(value) = value {
            fixed64(to, point::AS_DOUBLE, value.to_le_bytes());
        }
        to.extend_from_slice(attributes);
        if value.is_none() {
            varint(to, point::FLAGS, DataPointFlags::NoRecordedValueMask as u64);
        }
    }
}

/// What follows the points in a cumulative, monotonic `Sum`.
pub(super) fn sum_tail() -> Vec<u8> {
    let mut tail = vec![];
    varint(&mut tail, 2, AggregationTemporality::Cumulative as u64);
    varint(&mut tail, 3, 1);
    tail
}
