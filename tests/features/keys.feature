Feature: Keys
  On its own machine a server without keys is open. From the first key on everybody has to bring one, and a key's tasks are its
  own business.

  Scenario: The first key closes the server to those without one
    Given a server of its own without keys
    Then a caller without a key is served
    When the operator makes the key "first"
    Then a caller without a key is refused with 401 "MISSING_TOKEN"
    And a caller with a key that nobody made is refused with 401 "BAD_TOKEN"
    And a caller with the key "first" is served
    And commands on the server's machine are served

  Scenario: Another key's task is not there
    Given a server with the keys "ada" and "ben"
    When "ada" submits "diary" of 5 tokens
    Then "ada" reads "diary" and finds it in the list
    And "ben" is told that there is no task "diary": to get, to follow, to cancel, to explain
    And "ben" does not find "diary" in the list

  Scenario: A revoked key is accepted no more
    Given a server with the keys "ada" and "ben"
    When the operator revokes the key "ada"
    Then a caller with the key "ada" is refused with 401 "BAD_TOKEN"
    And a caller with the key "ben" is served

  Scenario: A rotated key keeps its tasks
    Given a server with the keys "ada" and "ben"
    When "ada" submits "diary" of 5 tokens
    And the operator rotates the key "ada"
    Then a caller with the old secret of "ada" is refused with 401 "BAD_TOKEN"
    And "ada" reads "diary" and finds it in the list

  Scenario: A key has a rate
    Given a server with the keys "ada" and "ben"
    And the operator limits "ben" to 2 tasks a minute
    When "ben" submits 3 tasks
    Then the first 2 are accepted, and the third is refused with 429 "RATE_LIMITED" and a time to wait
    And "ada" can submit a task

  Scenario: A key for reading submits nothing, and only an operator makes keys
    Given a server with the keys "ada" and "ben"
    And the operator made the key "looker" for reading alone
    Then "looker" sees the pools
    And "looker" is refused with 403 "FORBIDDEN" when it submits a task
    And "ada" is refused with 403 "FORBIDDEN" when it makes a key

  Scenario: No secret is kept
    Given a server with the keys "ada" and "ben"
    When "ada" submits "diary" of 5 tokens
    Then no secret of a key stands in the log or in any file of the server
