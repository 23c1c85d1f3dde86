/**
 * Reads what the start of an image says of its backing file, from the specifications and without production
 * code; and all else that is there, as text to compare.
 */

import {
  EXTENSION_BACKING_FORMAT,
  QCOW2_HEADER_FIELDS,
  type Qcow2HeaderField,
  readBe,
} from "./qcow2-header-builder.ts";
import { QED_FEATURE_BACKING_FILE, QED_FEATURE_BACKING_NO_PROBE } from "./qed-builder.ts";

export interface BackingText {
  /** `name (format)`, or `none`. */
  readonly backing: string;
  /** Header fields and extensions that are not about it. */
  readonly rest: string;
}

/** An extension that says nothing; tsimgfs puts it there while it moves others. */
const FILLER = 0x7473696d;

export function readQcow2Backing(bytes: Buffer): BackingText {
  const field = (name: Qcow2HeaderField): number => {
    const { offset, size } = QCOW2_HEADER_FIELDS[name];
    return Number(readBe(bytes, offset, size));
  };
  const version = field("version");
  const clusterSize = 2 ** field("cluster_bits");
  const headerLength = version === 2 ? 72 : field("header_length");
  const nameOffset = field("backing_file_offset");
  const extensionsEnd = nameOffset === 0 ? clusterSize : nameOffset;
  let format = "unknown";
  const rest = [
    bytes.toString("hex", 0, QCOW2_HEADER_FIELDS.backing_file_offset.offset),
    bytes.toString("hex", QCOW2_HEADER_FIELDS.cluster_bits.offset, headerLength),
  ];
  for (let at = headerLength; at < extensionsEnd; ) {
    const type = bytes.readUInt32BE(at);
    const length = bytes.readUInt32BE(at + 4);
    if (type === 0) break;
    const end = at + 8 + length;
    if (end > extensionsEnd) throw new Error(`extension at ${at} ends at ${end}`);
    if (type === EXTENSION_BACKING_FORMAT) format = bytes.toString("utf8", at + 8, end);
    else if (type !== FILLER) rest.push(bytes.toString("hex", at, end));
    at = at + 8 + Math.ceil(length / 8) * 8;
  }
  const nameEnd = nameOffset + field("backing_file_size");
  if (nameOffset !== 0 && nameEnd > clusterSize) throw new Error(`the name ends at ${nameEnd}`);
  const name = bytes.toString("utf8", nameOffset, nameEnd);
  return { backing: nameOffset === 0 ? "none" : `${name} (${format})`, rest: rest.join("\n") };
}

export function readQedBacking(bytes: Buffer): BackingText {
  const features = bytes.readUInt32LE(16);
  const [start, size] = [bytes.readUInt32LE(56), bytes.readUInt32LE(60)];
  const rest = [
    bytes.toString("hex", 0, 16),
    String(features & ~(QED_FEATURE_BACKING_FILE | QED_FEATURE_BACKING_NO_PROBE)),
    bytes.toString("hex", 20, 56),
  ];
  const area = bytes.readUInt32LE(4) * bytes.readUInt32LE(12);
  const isBacked = (features & QED_FEATURE_BACKING_FILE) !== 0;
  if (isBacked && start + size > area) throw new Error(`the name ends at ${start + size}`);
  const format = (features & QED_FEATURE_BACKING_NO_PROBE) !== 0 ? "raw" : "unknown";
  const name = bytes.toString("utf8", start, start + size);
  return { backing: isBacked ? `${name} (${format})` : "none", rest: rest.join("\n") };
}
