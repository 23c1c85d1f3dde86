/** What the daemon is asked to do: plain data, passed to the background process as JSON. */

import type { BackingPolicy } from "../block/referenced-file.ts";
import type { WritePolicy } from "../block/write-policy.ts";
import type { FormatName } from "../formats/driver.ts";
import type { MountOptions } from "../fuse/mount-options.ts";

export interface DaemonConfig {
  /** Images as the user named them. */
  readonly images: readonly string[];
  /** As the user named it; it exists. */
  readonly mountpoint: string;
  readonly format: FormatName | undefined;
  readonly backingPolicy: BackingPolicy | undefined;
  readonly forceShare: boolean;
  /** How devices are written to; undefined: the mount is read-only. */
  readonly writing: WritePolicy | undefined;
  readonly threads: number;
  /** The devices are the disks as they were at this snapshot, an id or a name; undefined: as they are. */
  readonly snapshot: string | undefined;
  /** Images get what they lack from their backing files, from the start. */
  readonly streaming: { readonly limit: number | undefined } | undefined;
  readonly mountOptions: MountOptions;
  readonly logFile: string | undefined;
}

/** What the background process tells the command that started it. */
export type Readiness =
  | { readonly kind: "ready"; readonly warnings: readonly string[] }
  | { readonly kind: "failed"; readonly message: string };
