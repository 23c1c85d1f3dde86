/** What the parts of a QED writer work on, in one thread. */

import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { QedLayout } from "../layout.ts";
import type { QedImage } from "../qed-image.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import type { HeaderWriter } from "./header-writer.ts";
import type { SharedState } from "./shared-state.ts";

export interface QedWriterContext {
  readonly layout: QedLayout;
  /** What this thread reads through. */
  readonly image: QedImage;
  readonly lock: AccessLock;
  readonly storage: WritableStorage;
  readonly state: SharedState;
  readonly allocator: ClusterAllocator;
  readonly metadata: MetadataMap;
  readonly headerWriter: HeaderWriter;
}
