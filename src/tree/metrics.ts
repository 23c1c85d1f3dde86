/** `metrics` at the root of a mount: what monitoring asks for, of all devices. It costs next to nothing. */

import { type DeviceCounts, OPERATIONS } from "../threads/counters.ts";
import { bucketOf, bucketStart } from "../threads/latency-histogram.ts";
import { STREAM_STATES } from "../threads/stream-state.ts";
import { type MetricFamily, OpenMetricsText } from "./openmetrics.ts";
import type { StreamStats } from "./stream-control.ts";

/** What is told of one device. Sizes in bytes. */
export interface DeviceMetrics {
  readonly name: string;
  readonly image: string;
  readonly format: string;
  readonly isWritable: boolean;
  readonly virtualSize: number;
  /** Of the image file. */
  readonly fileSize: number;
  /** What the image file takes on the host. */
  readonly allocatedSize: number;
  readonly reserved: number;
  readonly counts: DeviceCounts;
  readonly stream: StreamStats | undefined;
}

/** Upper bounds of latencies: powers of two from 1 microsecond to 17 seconds, where buckets of ours end. */
const BOUNDS_US = Array.from({ length: 25 }, (_, exponent) => 2 ** exponent);
const US_PER_SECOND = 1e6;
const MS_PER_SECOND = 1e3;

/** The text, all devices in each family: families must not be mixed. */
export function metricsText(devices: readonly DeviceMetrics[]): string {
  const text = new OpenMetricsText();
  addInfo(text, devices);
  addSizes(text, devices);
  addRequests(text, devices);
  addEvents(text, devices);
  addStreams(text, devices);
  return text.end();
}

function addInfo(text: OpenMetricsText, devices: readonly DeviceMetrics[]): void {
  text.family({
    name: "tsimgfs_device",
    type: "info",
    help: "What a device is.",
  });
  for (const { name, image, format, isWritable } of devices) {
    const access = isWritable ? "read-write" : "read-only";
    text.sample("_info", { device: name, image, format, access }, 1);
  }
}

type Value = (device: DeviceMetrics) => number;

// biome-ignore format: a table reads in columns
const SIZES: readonly (readonly [name: string, value: Value, help: string])[] = [
  ["tsimgfs_virtual_size_bytes",    (device) => device.virtualSize,   "Size of the disk."],
  ["tsimgfs_image_file_size_bytes", (device) => device.fileSize,      "Length of the image file."],
  ["tsimgfs_image_allocated_bytes", (device) => device.allocatedSize, "What the image file takes on the host."],
  ["tsimgfs_reserved_bytes",        (device) => device.reserved,      "Kept in the image file for new clusters."],
];

function addSizes(text: OpenMetricsText, devices: readonly DeviceMetrics[]): void {
  for (const [name, value, help] of SIZES) {
    text.family({ name, type: "gauge", unit: "bytes", help });
    for (const device of devices) text.sample("", { device: device.name }, value(device));
  }
}

function addRequests(text: OpenMetricsText, devices: readonly DeviceMetrics[]): void {
  const perOperation = (family: MetricFamily, value: "bytes" | "errors"): void => {
    text.family(family);
    for (const { name, counts } of devices) {
      for (const operation of OPERATIONS) {
        const labels = { device: name, operation };
        text.sample("_total", labels, counts.operations[operation][value]);
      }
    }
  };
  const bytes = { name: "tsimgfs_request_bytes", unit: "bytes" } as const;
  perOperation({ ...bytes, type: "counter", help: "Bytes of requests that succeeded." }, "bytes");
  const errors = { name: "tsimgfs_request_errors", type: "counter" } as const;
  perOperation({ ...errors, help: "Requests that failed." }, "errors");
  text.family({
    name: "tsimgfs_request_duration_seconds",
    type: "histogram",
    unit: "seconds",
    help: "Time that requests took in tsimgfs.",
  });
  for (const device of devices) addDurations(text, device);
}

function addDurations(text: OpenMetricsText, { name, counts }: DeviceMetrics): void {
  for (const operation of OPERATIONS) {
    const labels = { device: name, operation };
    const { requests, totalMs, buckets } = counts.operations[operation];
    let below = 0;
    let bucket = 0;
    for (const bound of BOUNDS_US) {
      const end = bucketOf(bound / MS_PER_SECOND);
      for (; bucket < end; bucket++) below += buckets[bucket] ?? 0;
      text.sample("_bucket", { ...labels, le: String(bucketStart(end) / US_PER_SECOND) }, below);
    }
    // Threads count on: the sum of what was looked at, so that the buckets fit.
    const total = buckets.reduce((sum, inBucket) => sum + inBucket, 0);
    text.sample("_bucket", { ...labels, le: "+Inf" }, total);
    text.sample("_count", labels, total);
    text.sample("_sum", labels, requests === 0 ? 0 : totalMs / MS_PER_SECOND);
  }
}

type EventName = keyof DeviceCounts["events"];

interface EventFamily extends Omit<MetricFamily, "type"> {
  /** Each counter, with the labels that tell it from the others. */
  readonly samples: readonly (readonly [
    event: EventName,
    labels: Readonly<Record<string, string>>,
  ])[];
}

const EVENTS: readonly EventFamily[] = [
  { name: "tsimgfs_opens", help: "Opens of the device.", samples: [["opens", {}]] },
  {
    name: "tsimgfs_copy_on_read_clusters",
    help: "Clusters of backing files: copied into the image as data or zeros, or not stored.",
    samples: [
      ["copy-on-read-stored", { result: "stored" }],
      ["copy-on-read-zero", { result: "zero" }],
      ["copy-on-read-failed", { result: "failed" }],
    ],
  },
  {
    name: "tsimgfs_zero_detected_clusters",
    help: "Clusters of zeros that were written and take no data.",
    samples: [["zero-clusters-detected", {}]],
  },
  {
    name: "tsimgfs_zero_detected_bytes",
    unit: "bytes",
    help: "Bytes of zeros that were written and take no data.",
    samples: [["zero-bytes-detected", {}]],
  },
  {
    name: "tsimgfs_punched_bytes",
    unit: "bytes",
    help: "Bytes of the image's files in which holes were punched.",
    samples: [["punched-bytes", {}]],
  },
  {
    name: "tsimgfs_table_cache_lookups",
    help: "Look-ups of mapping tables: in memory, or read from the file.",
    samples: [
      ["table-cache-hits", { result: "hit" }],
      ["table-cache-misses", { result: "miss" }],
    ],
  },
];

function addEvents(text: OpenMetricsText, devices: readonly DeviceMetrics[]): void {
  for (const { samples, ...family } of EVENTS) {
    text.family({ ...family, type: "counter" });
    for (const { name, counts } of devices) {
      for (const [event, labels] of samples) {
        text.sample("_total", { device: name, ...labels }, counts.events[event]);
      }
    }
  }
}

/** Of devices that can be streamed. */
function addStreams(text: OpenMetricsText, devices: readonly DeviceMetrics[]): void {
  const streams = devices.flatMap(({ name, stream }) =>
    stream === undefined ? [] : [{ labels: { device: name }, stream }],
  );
  text.family({
    name: "tsimgfs_stream_state",
    type: "stateset",
    help: "What becomes of copying all of the backing files into the image.",
  });
  for (const { labels, stream } of streams) {
    for (const state of STREAM_STATES) {
      const isState = stream.state === state ? 1 : 0;
      text.sample("", { ...labels, tsimgfs_stream_state: state }, isState);
    }
  }
  const gauge = { type: "gauge", unit: "bytes" } as const;
  text.family({ ...gauge, name: "tsimgfs_stream_done_bytes", help: "Bytes of the disk done." });
  for (const { labels, stream } of streams) text.sample("", labels, stream.done);
  text.family({ ...gauge, name: "tsimgfs_stream_size_bytes", help: "Bytes of the disk in all." });
  for (const { labels, stream } of streams) text.sample("", labels, stream.total);
  text.family({
    name: "tsimgfs_stream_copied_bytes",
    type: "gauge",
    unit: "bytes",
    help: "Bytes that were copied.",
  });
  for (const { labels, stream } of streams) text.sample("", labels, stream["copied-bytes"]);
}
