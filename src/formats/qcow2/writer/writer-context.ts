/** What the parts of a qcow2 writer work on, in one thread. */

import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import type { TableCache } from "../../../threads/table-cache.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { Qcow2Layout } from "../layout.ts";
import type { Qcow2Image } from "../qcow2-image.ts";
import type { SharedSnapshotTable } from "../snapshots/shared-snapshot-table.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import type { HeaderWriter } from "./header-writer.ts";
import type { SharedState } from "./shared-state.ts";

export interface Qcow2WriterContext {
  readonly layout: Qcow2Layout;
  /** What this thread reads through. */
  readonly image: Qcow2Image;
  readonly lock: AccessLock;
  readonly storage: WritableStorage;
  /** The image file itself, unless there is an external data file. */
  readonly dataStorage: WritableStorage;
  readonly state: SharedState;
  readonly tableCache: TableCache;
  readonly allocator: ClusterAllocator;
  readonly metadata: MetadataMap;
  readonly headerWriter: HeaderWriter;
  readonly snapshots: SharedSnapshotTable;
  /** Host space of what is freed is given back. */
  readonly punches: boolean;
}
