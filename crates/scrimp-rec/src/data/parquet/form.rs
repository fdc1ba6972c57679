//! The logical types of Parquet: the meaning of stored integers and bytes.

use super::super::typed::{Unit, Value};
use parquet::{
    basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical},
    data_type::Int96,
    schema::types::ColumnDescriptor,
};
use std::fmt::Write as _;

/// The meaning of a column's stored values.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// The stored values themselves.
    Plain,
    Unsigned,
    /// With this scale.
    Decimal(i8),
    Float16,
    Date,
    Time(Unit),
    /// `true`: in UTC.
    Timestamp(Unit, bool),
    Uuid,
}

impl Form {
    /// The form of `column`; `None` if its values cannot be read.
    pub(super) fn of(column: &ColumnDescriptor) -> Option<Self> {
        let fixed = column.physical_type() == Physical::FIXED_LEN_BYTE_ARRAY;
        let bytes = if fixed { usize::try_from(column.type_length()).ok()? } else { 0 };
        let unit = |unit: &TimeUnit| match unit {
            TimeUnit::MILLIS => Unit::Milli,
            TimeUnit::MICROS => Unit::Micro,
            TimeUnit::NANOS => Unit::Nano,
        };
        Some(match column.logical_type_ref() {
            Some(LogicalType::Decimal(t)) => Self::Decimal(t.scale.try_into().ok()?),
            Some(LogicalType::Integer(t)) if !t.is_signed => Self::Unsigned,
            Some(LogicalType::Float16) if bytes == 2 => Self::Float16,
            Some(LogicalType::Date) => Self::Date,
            Some(LogicalType::Time(t)) => Self::Time(unit(&t.unit)),
            Some(LogicalType::Timestamp(t)) => Self::Timestamp(unit(&t.unit), t.is_adjusted_to_u_t_c),
            Some(LogicalType::Uuid) if bytes == 16 => Self::Uuid,
            Some(_) => Self::Plain,
            None => match column.converted_type() {
                ConvertedType::DECIMAL => Self::Decimal(column.type_scale().try_into().ok()?),
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64 => Self::Unsigned,
                ConvertedType::DATE => Self::Date,
                ConvertedType::TIME_MILLIS => Self::Time(Unit::Milli),
                ConvertedType::TIME_MICROS => Self::Time(Unit::Micro),
                ConvertedType::TIMESTAMP_MILLIS => Self::Timestamp(Unit::Milli, true),
                ConvertedType::TIMESTAMP_MICROS => Self::Timestamp(Unit::Micro, true),
                ConvertedType::INTERVAL => return None,
                _ => Self::Plain,
            },
        })
    }

    /// The value of a stored integer; `unsigned` has the same bits.
    pub(super) fn integer(self, n: i64, unsigned: u64) -> Value<'static> {
        match self {
            Self::Unsigned => Value::Unsigned(unsigned),
            Self::Decimal(scale) => Value::Decimal(n.into(), scale),
            Self::Date => i32::try_from(n).map_or(Value::Integer(n), Value::Date),
            Self::Time(unit) => Value::Time(n, unit),
            Self::Timestamp(unit, utc) => Value::Timestamp(n, unit, utc),
            Self::Plain | Self::Float16 | Self::Uuid => Value::Integer(n),
        }
    }

    /// The value of stored bytes. `text` is a buffer. A decimal beyond an i128 is a text of bytes, which is not a number.
    pub(super) fn bytes<'a>(self, bytes: &'a [u8], text: &'a mut String) -> Value<'a> {
        match self {
            Self::Float16 => match bytes {
                &[low, high] => Value::Single(half::f16::from_le_bytes([low, high]).to_f32()),
                _ => Value::Missing,
            },
            Self::Decimal(scale) => {
                big_endian(bytes).map_or(Value::Bytes(bytes), |n| Value::Decimal(n, scale))
            }
            Self::Uuid => {
                text.clear();
                for (i, byte) in bytes.iter().enumerate() {
                    let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
                    // Writing to a String does not fail.
                    let _ = write!(text, "{dash}{byte:02x}");
                }
                Value::Bytes(text.as_bytes())
            }
            _ => Value::Bytes(bytes),
        }
    }
}

/// A signed big-endian integer; `None` beyond an i128.
fn big_endian(bytes: &[u8]) -> Option<i128> {
    let fill = if bytes.first().is_some_and(|&b| b >= 0x80) { 0xff } else { 0 };
    let (excess, low) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut all = [fill; 16];
    all[16 - low.len()..].copy_from_slice(low);
    let n = i128::from_be_bytes(all);
    (excess.iter().all(|&b| b == fill) && (n < 0) == (fill == 0xff)).then_some(n)
}

/// A point in time in Impala's and Spark's old form: nanoseconds of a day, and a Julian day.
pub(super) fn int96(value: &Int96) -> Value<'static> {
    const EPOCH: i64 = 2_440_588;
    let &[low, high, day] = value.data() else { return Value::Missing };
    let nanos = (u64::from(high) << 32 | u64::from(low)).cast_signed();
    let midnight = (i64::from(day) - EPOCH).saturating_mul(86_400_000_000);
    let micros = midnight.saturating_add(nanos / 1000);
    Value::Timestamp(micros, Unit::Micro, false)
}
