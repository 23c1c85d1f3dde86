/** The queue of jobs that a crew works on in tests: words of shared memory. */

export const QUEUE = {
  /** Jobs that can be taken. */
  posted: 0,
  taken: 1,
  /** One word for each group from here on: jobs of it that are under way. */
  started: 2,
} as const;
