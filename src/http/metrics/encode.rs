//! Lines of metrics that are counted elsewhere, and the form of the page.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use crate::engine::Histogram;

/// A gauge without labels of its own.
pub fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// A gauge whose labels say all.
pub fn labelled_gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    labels: &impl EncodeLabelSet,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    metric.encode_family(labels)?.encode_gauge(&value)
}

/// `name` is without the `_total` that the page has.
pub fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: u64) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    counted(metric, count)
}

/// The line of a counter.
pub fn counted(mut metric: MetricEncoder<'_>, count: impl EncodeCounterValue) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

/// A histogram without labels of its own.
pub fn histogram(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &Histogram,
) -> fmt::Result {
    spread(to.encode_descriptor(name, help, None, MetricType::Histogram)?, values)
}

/// The lines of a histogram.
pub fn spread(mut metric: MetricEncoder<'_>, values: &Histogram) -> fmt::Result {
    let buckets = values.buckets();
    // As many as the last bucket says, whatever is counted meanwhile.
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(values.sum(), count, &buckets, None)
}
