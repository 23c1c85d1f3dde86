/** Sampling the counters of all devices of all mounts. */

import { type ActiveMount, listMounts, readXattr } from "../../daemon/mounts.ts";
import { COUNTERS_XATTR, type CounterSample } from "../../tree/io-fields.ts";
import { type DeviceRates, ratesOf } from "./rates.ts";

export interface DeviceActivity {
  readonly device: string;
  readonly image: string;
  readonly format: string;
  /** undefined: seen for the first time, or its counters cannot be read. */
  readonly rates: DeviceRates | undefined;
}

export interface MountActivity {
  readonly mountpoint: string;
  readonly state: ActiveMount["state"];
  readonly pid: number | undefined;
  readonly devices: readonly DeviceActivity[];
}

interface Sample {
  /** By performance.now(). */
  readonly at: number;
  readonly counters: CounterSample;
}

export class Sampler {
  #samples: ReadonlyMap<string, Sample> = new Map();

  /** What was done since the last call; of devices that are new, nothing is known yet. */
  sample(): MountActivity[] {
    const samples = new Map<string, Sample>();
    const mounts = listMounts().map(({ mountpoint, state, pid, devices }) => ({
      ...{ mountpoint, state, pid },
      devices: devices.map((description) => {
        const text = readXattr(description.device, COUNTERS_XATTR);
        // Another mount at the same place starts from 0.
        const key = `${pid} ${description.device}`;
        const rates = text === undefined ? undefined : this.#advance(key, text, samples);
        return { ...description, rates };
      }),
    }));
    this.#samples = samples;
    return mounts;
  }

  #advance(key: string, text: string, samples: Map<string, Sample>): DeviceRates | undefined {
    const counters: CounterSample = JSON.parse(text);
    const at = performance.now();
    samples.set(key, { at, counters });
    const before = this.#samples.get(key);
    if (before === undefined || at <= before.at) return undefined;
    return ratesOf(before.counters, counters, (at - before.at) / 1000);
  }
}
