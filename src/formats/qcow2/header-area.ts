/**
 * The first cluster in its parts: header, extensions, end marker, the backing file's name, and what nobody
 * uses; and the same parts put together around another backing file, another data file, or other bitmaps.
 */

import { decode, encode, sizeOf } from "../../binary/struct.ts";
import type { BackingReference } from "../driver.ts";
import type { ByteRange } from "../header-switch.ts";
import { SECTOR_SIZE } from "../raw/create.ts";
import { encodeExtension } from "./create-header.ts";
import { AUTOCLEAR } from "./features.ts";
import {
  COMPRESSION_TYPE,
  HEADER,
  type Header,
  V2_HEADER_LENGTH,
  V3_HEADER_LENGTH,
} from "./header.ts";
import {
  type BitmapsExtension,
  EXTENSION,
  EXTENSION_TYPE,
  encodeBitmapsExtension,
} from "./header-extensions.ts";

/**
 * An extension of ours, which says nothing: others pass over it, and over its data, where a rewrite of the
 * extensions behind it is prepared. "tsim".
 */
const FILLER_TYPE = 0x7473_696d;

/** The autoclear bits of what a change of the backing file leaves true. */
const MAINTAINED = AUTOCLEAR.bitmaps | AUTOCLEAR.rawExternalData;

/** What another header says. */
export interface HeaderChange {
  /** Undefined: there is none. */
  readonly backing: BackingReference | undefined;
  /** Default: as it is. */
  readonly bitmaps?: { readonly extension: BitmapsExtension | undefined };
  /** Name of the external data file. Default: as it is. */
  readonly dataFile?: string;
}

/** The extensions that a change does not take over. */
function replacedBy({ bitmaps, dataFile }: HeaderChange): readonly number[] {
  const replaced: number[] = [EXTENSION_TYPE.backingFormat, FILLER_TYPE];
  if (bitmaps !== undefined) replaced.push(EXTENSION_TYPE.bitmaps);
  if (dataFile !== undefined) replaced.push(EXTENSION_TYPE.dataFile);
  return replaced;
}

/** What is behind the fields of version 2 while no newer feature is used. */
const PLAIN_V3 = {
  incompatible_features: 0n,
  compatible_features: 0n,
  autoclear_features: 0n,
  refcount_order: 4,
  header_length: V3_HEADER_LENGTH,
  compression_type: COMPRESSION_TYPE.zlib,
} as const;

/** Extensions that an image does not take along to a version. */
const NEWER: Readonly<Record<2 | 3, readonly number[]>> = {
  2: [EXTENSION_TYPE.featureNames, EXTENSION_TYPE.bitmaps, FILLER_TYPE],
  3: [FILLER_TYPE],
};

const EXTENSION_HEADER = sizeOf(EXTENSION);

const padded = (length: number): number => Math.ceil(length / 8) * 8;

/** An extension with its padding. */
interface ExtensionPart extends ByteRange {
  readonly type: number;
}

export class HeaderArea {
  readonly header: Header;
  /** The whole cluster. */
  readonly bytes: Uint8Array;
  /** All but the end marker. */
  readonly extensions: readonly ExtensionPart[];
  /** Behind the last extension and the end marker, if there is one. */
  readonly extensionsEnd: number;

  /** @param bytes a cluster that was read and checked as the first one of an image */
  constructor(header: Header, bytes: Uint8Array) {
    this.header = header;
    this.bytes = bytes;
    const end = header.backing_file_offset === 0 ? bytes.length : header.backing_file_offset;
    const extensions: ExtensionPart[] = [];
    let start = header.header_length;
    while (start < end) {
      const { type, length } = decode(EXTENSION, bytes, "be", start);
      const next = start + EXTENSION_HEADER + padded(length);
      if (type !== EXTENSION_TYPE.end) extensions.push({ type, start, end: Math.min(next, end) });
      start = next;
      if (type === EXTENSION_TYPE.end) break;
    }
    this.extensions = extensions;
    this.extensionsEnd = Math.min(start, end);
  }

  /** Where the name of the backing file is. */
  nameRange(): ByteRange {
    const { backing_file_offset: start, backing_file_size: size } = this.header;
    return { start, end: start === 0 ? 0 : start + size };
  }

  /** What has a meaning: all but the data of a filler. */
  inUse(): ByteRange[] {
    const { header_length } = this.header;
    const parts = this.extensions.map(({ type, start, end }) => {
      return { start, end: type === FILLER_TYPE ? start + EXTENSION_HEADER : end };
    });
    const marker = { start: parts.at(-1)?.end ?? header_length, end: this.extensionsEnd };
    return [{ start: 0, end: header_length }, ...parts, marker, this.nameRange()];
  }

  /** Behind all that is in use. */
  end(): number {
    return Math.max(this.extensionsEnd, this.nameRange().end);
  }

  /**
   * The same with a change, the name of the backing file behind the extensions.
   *
   * @param place where the name may start, at the earliest
   * @returns undefined if there is no room
   */
  changed(change: HeaderChange, place: number): HeaderArea | undefined {
    const { backingFormat } = EXTENSION_TYPE;
    const replaced = replacedBy(change);
    const others = this.extensions.filter(({ type }) => !replaced.includes(type));
    const index = this.extensions.findIndex(({ type }) => type === backingFormat);
    const isBefore = ({ start }: ExtensionPart): boolean =>
      start < (this.extensions[index]?.start ?? 0);
    const parts = [
      encodeBitmaps(change),
      encodeDataFile(change),
      ...others.filter(isBefore).map((part) => this.#bytesOf(part)),
      encodeFormat(change),
      ...others.filter((part) => !isBefore(part)).map((part) => this.#bytesOf(part)),
    ];
    return this.#assemble(parts, change, place);
  }

  /**
   * As `changed`, but all other extensions are behind a filler, and so are those of the change if they do not
   * fit before it: of what is before its end, only the first sector is another one.
   *
   * @param skip where the filler ends
   * @returns undefined if there is no room
   */
  detour(change: HeaderChange, skip: number): HeaderArea | undefined {
    if (skip > this.bytes.length) return undefined;
    const ours = Buffer.concat([
      encodeBitmaps(change),
      encodeDataFile(change),
      encodeFormat(change),
    ]);
    const isShort = this.header.header_length + ours.length + EXTENSION_HEADER <= SECTOR_SIZE;
    const [first, behind] = isShort ? [ours, Buffer.alloc(0)] : [Buffer.alloc(0), ours];
    const data = this.header.header_length + first.length + EXTENSION_HEADER;
    const filler = Buffer.from(this.bytes.subarray(data - EXTENSION_HEADER, skip));
    encode(EXTENSION, { type: FILLER_TYPE, length: skip - data }, filler, "be");
    const replaced = replacedBy(change);
    const others = this.extensions.filter(({ type }) => !replaced.includes(type));
    const parts = [first, filler, behind, ...others.map((part) => this.#bytesOf(part))];
    return this.#assemble(parts, change, 0);
  }

  /**
   * The same in another version of the format, which has none of the newer features.
   *
   * @param place where the backing file's name may start, at the earliest
   * @returns undefined if there is no room
   */
  withVersion(version: 2 | 3, place: number): HeaderArea | undefined {
    const length = version === 2 ? V2_HEADER_LENGTH : V3_HEADER_LENGTH;
    const kept = this.extensions.filter(({ type }) => !NEWER[version].includes(type));
    const extensions = [...kept.map((part) => this.#bytesOf(part)), Buffer.alloc(EXTENSION_HEADER)];
    const area = Buffer.concat(extensions);
    const { start, end } = this.nameRange();
    const name = this.bytes.slice(start, end);
    const nameOffset = Math.max(place, length + area.length);
    if (nameOffset + name.length > this.bytes.length) return undefined;
    const change = { version, backing_file_offset: name.length === 0 ? 0 : nameOffset };
    const bytes = Uint8Array.from(this.bytes);
    bytes.fill(0, V2_HEADER_LENGTH, length + area.length);
    encode(HEADER, change, bytes, "be");
    if (version === 3) encode(HEADER, PLAIN_V3, bytes, "be");
    bytes.set(area, length);
    bytes.set(name, nameOffset);
    const header = { ...this.header, ...PLAIN_V3, ...change, header_length: length };
    return new HeaderArea(header, bytes);
  }

  #bytesOf({ start, end }: ExtensionPart): Buffer {
    const bytes = Buffer.alloc(padded(end - start));
    bytes.set(this.bytes.subarray(start, end));
    return bytes;
  }

  #assemble(
    extensions: readonly Buffer[],
    { backing, bitmaps }: HeaderChange,
    place: number,
  ): HeaderArea | undefined {
    const { version, header_length, autoclear_features } = this.header;
    const area = Buffer.concat([...extensions, Buffer.alloc(EXTENSION_HEADER)]);
    const extensionsEnd = header_length + area.length;
    const name = Buffer.from(backing?.name ?? "");
    const nameOffset = Math.max(place, extensionsEnd);
    if (Math.max(extensionsEnd, nameOffset + name.length) > this.bytes.length) return undefined;
    const bytes = Uint8Array.from(this.bytes);
    bytes.set(area, header_length);
    const stored = {
      backing_file_offset: backing === undefined ? 0 : nameOffset,
      backing_file_size: name.length,
    };
    bytes.set(name, nameOffset);
    encode(HEADER, stored, bytes, "be");
    let maintained = autoclear_features & MAINTAINED;
    if (bitmaps !== undefined) {
      maintained &= ~AUTOCLEAR.bitmaps;
      if (bitmaps.extension !== undefined) maintained |= AUTOCLEAR.bitmaps;
    }
    const autoclear = { autoclear_features: maintained };
    if (version === 3) encode(HEADER, autoclear, bytes, "be");
    return new HeaderArea({ ...this.header, ...stored, ...autoclear }, bytes);
  }
}

function encodeBitmaps({ bitmaps }: HeaderChange): Buffer {
  if (bitmaps?.extension === undefined) return Buffer.alloc(0);
  return encodeExtension("bitmaps", encodeBitmapsExtension(bitmaps.extension));
}

function encodeDataFile({ dataFile }: HeaderChange): Buffer {
  if (dataFile === undefined) return Buffer.alloc(0);
  return encodeExtension("dataFile", Buffer.from(dataFile));
}

function encodeFormat({ backing }: HeaderChange): Buffer {
  if (backing?.format === undefined) return Buffer.alloc(0);
  return encodeExtension("backingFormat", Buffer.from(backing.format));
}
